"""Fixtures for tests that drive a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ExportError
from tests.browser.chromium import executable, launched, static_server
from training.edge import ort_web
from training.edge.build import RUNNER


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    if executable() is None:
        pytest.skip("no Chromium on the PATH: these tests drive a real browser")
    pytest.importorskip("playwright", reason="playwright is not installed: these tests drive a real browser")
    with launched() as started:
        yield started


@pytest.fixture(scope="session")
def ort_web_files() -> dict[str, bytes]:
    """onnxruntime-web's files, fetched from npm once."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on the PATH: it brings onnxruntime-web")
    try:
        return ort_web.web_runtime()
    except ExportError as error:
        pytest.skip(f"npm's registry cannot be reached: {error}")


@pytest.fixture(scope="session")
def scripts(browser: Any) -> Iterator[Any]:
    """A page from which the bundle's JavaScript modules can be imported, without a model."""
    with static_server(RUNNER / "web") as address:
        page = browser.new_page()
        page.goto(f"{address}/style.css")
        yield page
        page.close()


@pytest.fixture
def anyone_page(browser: Any) -> Iterator[Any]:
    """A fresh page with a profile of its own, whose errors fail the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    yield page
    context.close()
    assert said == []


def unpacked(bundle: Path, folder: Path) -> Path:
    """The zip *bundle* unpacked into the new *folder*."""
    shutil.unpack_archive(bundle, folder)
    return folder
