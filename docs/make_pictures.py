"""Makes the pictures of the page and the report: `python docs/make_pictures.py STORE PHOTO...`.

STORE is a model store, such as the one `make demo` leaves. The first PHOTO is shown large. A real
server is started, and Debian's Chromium takes the screenshots.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent / "pictures"
DESKTOP = {"width": 1180, "height": 920}
PHONE = {"width": 390, "height": 844}
REPORT = {"width": 900, "height": 640}
QUALITY = 82
"""Of WebP: each picture stays under 100 kB."""
READY_S = 60.0


def main() -> None:
    """Start the service, take the pictures, stop the service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--model", required=True, help="the model that answers in the pictures")
    parser.add_argument("--layer", default="", help="the layer whose maps are shown")
    parser.add_argument("--report", action="store_true", help="take the report too")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    port = _free_port()
    command = [sys.executable, "-m", "loupe", "serve", "--store", str(options.store)]
    command += ["--model", options.model, "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "LOUPE_LOG_SAMPLE": "0"})
    try:
        _wait_until_ready(port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            address = f"http://127.0.0.1:{port}/"
            _take_page(browser, address, options.photos, layer=options.layer)
            _take_phone(browser, address, options.photos[0])
            if options.report:
                _take_report(browser, max(options.store.glob(f"{options.model}/*/report.html")))
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def _take_page(browser: Browser, address: str, photos: list[Path], *, layer: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(address)
    page.set_input_files("#choose", photos[1:])
    page.wait_for_selector("#heat:not([hidden])")
    page.wait_for_load_state("networkidle")
    page.set_input_files("#choose", photos[0])
    page.wait_for_selector("#heat:not([hidden])")
    page.locator("#gallery .row", has_text="answered").wait_for()
    page.wait_for_load_state("networkidle")
    _save(page, "page.webp")
    page.click("#tab-seen")
    page.wait_for_selector("#seen .steps")
    _save(page, "page-saw.webp")
    page.goto(f"{address}#view=layers&layer={layer}")
    page.set_input_files("#choose", photos[0])
    page.wait_for_selector(".thumbs")
    page.wait_for_load_state("networkidle")
    box = page.locator(".map").bounding_box()
    assert box is not None, "the map is drawn"
    page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + box["height"] * 0.3)
    _save(page, "page-layers.webp")
    page.close()


def _take_phone(browser: Browser, address: str, photo: Path) -> None:
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    page.goto(address)
    page.set_input_files("#choose", photo)
    page.wait_for_selector("#heat:not([hidden])")
    page.wait_for_load_state("networkidle")
    _save(page, "page-phone.webp")
    page.close()


def _take_report(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport=REPORT)
    page.goto(report.resolve().as_uri())
    _save(page, "report.png")
    page.close()


def _save(page: Page, name: str) -> None:
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(FOLDER / name, quality=QUALITY, method=6)
    print(FOLDER / name, (FOLDER / name).stat().st_size, "bytes")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_ready(port: int) -> None:
    for _ in range(int(READY_S / 0.2)):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready after {READY_S:g} s")


if __name__ == "__main__":
    main()
