"""A real Chromium and a plain static server, for tests of pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_MS = 60_000
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def executable() -> str | None:
    """Chromium's path, or None."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@contextmanager
def launched(*arguments: str) -> Iterator[Any]:
    """Playwright's browser, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=[*ARGUMENTS, *arguments]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def another_browser(browser: Any, *arguments: str) -> Iterator[Any]:
    """A second browser with *arguments*, from the only Playwright of this process."""
    started = browser.browser_type.launch(
        executable_path=executable(), args=[*ARGUMENTS, *arguments]
    )
    try:
        yield started
    finally:
        started.close()


@contextmanager
def static_server(folder: Path) -> Iterator[str]:
    """The address of `python -m http.server` over *folder*, stopped at the end."""
    asked = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(folder),
    ]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = re.search(r"port (\d+)", said)
        assert port is not None, f"the server said {said!r}"
        yield f"http://127.0.0.1:{port.group(1)}"
    finally:
        process.terminate()
        process.wait(timeout=10)
        if process.stdout is not None:
            process.stdout.close()


def failure(address: str, *, browser: Any) -> str:
    """The message that the page shows instead of starting.

    A missing file is also an error in the browser's own log, so `page` cannot be used.
    """
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-state=failed]", timeout=READY_MS)
    text: str = page.inner_text("#note")
    context.close()
    return text
