"""The service's own pages in a real Chromium, behind a proxy that serves them under a path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.store.store import Store
from tests.http.proxy import proxied
from tests.http.server import Server, serving
from tests.models.packages import build_package

PREFIX = "/apps/loupe"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("playground")
    Store(folder / "store").publish(
        build_package(folder / "package", labels=("ant", "bee", "cow"), size=32, cam=True),
        name="zoo",
    )
    return folder / "store"


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), store=store) as running:
        yield running


@pytest.fixture(params=["under a path", "at the root"])
def address(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """Where the page is, without a slash at its end."""
    if request.param == "at the root":
        yield server.url
        return
    with proxied(server, prefix=PREFIX) as origin:
        yield f"{origin}{PREFIX}"


def test_the_page_classifies_and_explains_and_all_its_links_work(page, address, store):
    page.goto(address)
    page.locator("#model", has_text="zoo version 1").wait_for()
    assert page.url == f"{address}/"
    page.set_input_files("input", store / "zoo" / "1" / "golden" / "0.png")
    page.wait_for_selector("#heat.shown")
    assert page.locator("#answers li").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    links = page.eval_on_selector_all("nav a", "links => links.map(link => link.href)")
    assert [link.removeprefix(address) for link in links] == [
        "/docs",
        "/v1/models",
        "/metrics",
        "/readyz",
    ]
    assert [page.request.get(link).status for link in links] == [200] * 4


def test_the_api_page_asks_the_service_under_its_own_address(page, address):
    page.goto(f"{address}/docs/")
    page.locator(".info .title", has_text="Loupe").wait_for()
    assert page.url == f"{address}/docs"
    page.click("#operations-default-listModels .opblock-summary-control")
    page.click("#operations-default-listModels .try-out__btn")
    page.click("#operations-default-listModels .execute")
    page.locator(
        "#operations-default-listModels .live-responses-table .response-col_status", has_text="200"
    ).wait_for()
    assert (
        page.inner_text("#operations-default-listModels .request-url pre") == f"{address}/v1/models"
    )
