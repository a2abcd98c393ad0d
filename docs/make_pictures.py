"""Makes the pictures of README.md: `python docs/make_pictures.py STORE PHOTO`.

STORE is a model store with one model, such as the one `make demo` leaves. A real server is started,
and Debian's Chromium takes the screenshots.
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
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent / "pictures"
SIZE = {"width": 900, "height": 640}
COLOURS = 128
"""A palette keeps each picture under 100 kB."""
READY_S = 60.0


def main() -> None:
    """Start the service, take both pictures, stop the service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("photo", type=Path)
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    [report] = sorted(options.store.glob("*/*/report.html"))[-1:]
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "loupe",
        "serve",
        "--store",
        str(options.store),
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, env={**os.environ, "LOUPE_LOG_SAMPLE": "0"})
    try:
        _wait_until_ready(port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=SIZE)
            page.goto(f"http://127.0.0.1:{port}/")
            page.set_input_files("input[type=file]", options.photo)
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(1000)
            _save(page, "page.png")
            page.goto(report.resolve().as_uri())
            _save(page, "report.png")
            _save(page, "training.png", below="#training")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def _save(page: Page, name: str, *, below: str = "") -> None:
    """Write the window as *name*, scrolled to the element *below* if one is named."""
    if below:
        page.locator(below).evaluate("element => element.scrollIntoView()")
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS).save(FOLDER / name, optimize=True)
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
