"""Metrics without sockets: the event loop is free while they are computed, and a duration means the
same on every way.
"""

import asyncio
import threading
import time

import pytest
from prometheus_client import REGISTRY

from service.gate.keys import add_key
from service.http.app import Application
from service.observe import metrics as module
from service.observe.logs import STARTED_SCOPE_KEY
from service.observe.metrics import Scraper
from tests.service.held import PATIENCE_S
from tests.service.http.test_app import StandIn

AGE_S = 1000.0
"""So long ago began the requests here: whoever measures from elsewhere shows."""


@pytest.fixture
def slow(monkeypatch) -> tuple[list[int], threading.Event, threading.Event]:
    """In the place of the exposition: the threads that computed one, that one began, and what each
    of them waits for.
    """
    threads: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def compute() -> bytes:
        threads.append(threading.get_ident())
        begun.set()
        assert go.wait(PATIENCE_S)
        return str(len(threads)).encode()

    monkeypatch.setattr(module, "exposition", compute)
    return threads, begun, go


def test_many_who_ask_at_once_cost_one_computation_beside_the_event_loop(slow):
    threads, begun, go = slow

    async def test() -> None:
        scraper = Scraper()
        async with asyncio.timeout(PATIENCE_S):
            asking = [asyncio.create_task(scraper.text()) for _ in range(100)]
            assert await asyncio.to_thread(begun.wait, PATIENCE_S)
            # The loop runs on meanwhile; and one who leaves takes nothing from the others.
            asking[0].cancel()
            go.set()
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert found[1:] == [b"1"] * 99
            assert threads[0] != threading.get_ident()
            assert await scraper.text() == b"2", "who asks later gets what is true later"

    asyncio.run(test())


def test_a_computation_that_failed_is_not_remembered(monkeypatch):
    def fail() -> bytes:
        raise OSError("no")

    async def test() -> None:
        scraper = Scraper()
        with monkeypatch.context() as patch:
            patch.setattr(module, "exposition", fail)
            with pytest.raises(OSError, match="no"):
                await scraper.text()
        assert b"loupe_requests_total" in await scraper.text()

    asyncio.run(test())


def total(name: str, route: str) -> float:
    return (
        REGISTRY.get_sample_value(f"loupe_request_duration_seconds_{name}", {"route": route}) or 0.0
    )


@pytest.mark.parametrize(
    ("method", "path", "content_type", "route", "status"),
    [
        ("POST", "/v1/classify", b"image/png", "/v1/classify", 503),
        ("POST", "/v1/classify", b"application/json", "/v1/classify", 503),
        ("POST", "/predictions/zoo", b"image/png", "/predictions/{name}", 503),
        ("GET", "/openapi.json", b"", "/openapi.json", 200),
        ("GET", "/nothing", b"", "other", 404),
        ("PROPFIND", "/v1/models", b"", "other", 405),
        ("POST", "/v1/classify", b"image/png", "admission", 401),
        ("POST", "/classify", b"image/png", "admission", 401),
    ],
)
def test_a_duration_is_from_the_head_until_the_answer_is_ready_on_every_way(
    tmp_path, method, path, content_type, route, status
):
    settings = {}
    if status == 401:
        add_key(tmp_path / "keys", name="app", scopes=("predict",))
        settings["api_keys_file"] = str(tmp_path / "keys")
    app = Application(StandIn(None, **settings))
    before_s, before = total("sum", route), total("count", route)
    sent: list[dict] = []

    async def send(message: dict) -> None:
        assert total("count", route) == before + 1, "counted before the client can have it"
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x", "more_body": False}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", content_type)],
        STARTED_SCOPE_KEY: time.monotonic() - AGE_S,
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == status
    # Plus what the request itself took.
    assert AGE_S <= total("sum", route) - before_s < AGE_S + PATIENCE_S
