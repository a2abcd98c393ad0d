"""What only shows without a socket: how much of a body was read before a refusal, and what our own
failures look like.
"""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

import pytest

from models.errors import NotReady, QueueFull
from models.runtime.providers import ANY_SIZE
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from service.http.app import Application
from service.http.body.fetching import Fetcher
from service.settings import ServiceSettings
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Classifier:
    return Classifier.open(build_package(tmp_path_factory.mktemp("routes") / "tiny"), threads=1)


@pytest.fixture
def photo(opened: Classifier) -> bytes:
    return (opened.model.path / "golden" / "0.png").read_bytes()


class StandIn:
    """A worker whose pipeline the test chose, and none if it is None."""

    def __init__(self, pipeline: Pipeline | None, **settings: object) -> None:
        self.settings = ServiceSettings(**settings)
        self.fetcher = Fetcher(frozenset(), max_bytes=1000, timeout_s=1.0)
        self._pipeline = pipeline

    def pipeline(
        self, model: str | None = None, version: str | None = None, *, client: str = ""
    ) -> Pipeline:
        if self._pipeline is None:
            raise NotReady("the model was refused: it is rotten")
        return self._pipeline

    def running(self) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self._pipeline is None else self._pipeline


class Client:
    """A client that sends *parts* of a body, one each time the service asks, and then does as
    *then* says.
    """

    def __init__(self, *parts: bytes, then: str = "ends") -> None:
        self._parts = list(parts)
        self._then = then
        self.asked = 0
        """How many parts of the body the service took."""

    async def receive(self) -> dict[str, object]:
        if self._parts:
            self.asked += 1
            return {
                "type": "http.request",
                "body": self._parts.pop(0),
                "more_body": bool(self._parts) or self._then != "ends",
            }
        if self._then == "leaves":
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


def post(
    worker: StandIn, client: Client, **headers: str
) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and JSON body of `POST /v1/classify`."""
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def test() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/classify",
            "query_string": b"",
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
        }
        async with asyncio.timeout(PATIENCE_S), worker.running():
            await Application(worker)(scope, client.receive, send)

    asyncio.run(test())
    start, body = sent
    return (
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        json.loads(body["body"] or b"{}"),
    )


def pipeline(opened: Classifier) -> Pipeline:
    return Pipeline(
        opened, decode_threads=1, max_batch_size=4, max_queue_delay_s=0.0, max_queue_size=4
    )


def refuse_all(monkeypatch: pytest.MonkeyPatch, target: Pipeline) -> None:
    def full(**_: object) -> None:
        raise QueueFull(
            "4 images wait already, the most allowed; try again in 2.5 s", retry_after_s=2.5
        )

    monkeypatch.setattr(target, "admit", full)


def test_a_body_in_parts_is_one_image(opened, photo):
    client = Client(photo[:10], b"", photo[10:])
    status, headers, answer = post(StandIn(pipeline(opened)), client, x_request_id="mine")
    assert (status, client.asked, headers["x-request-id"], answer["request_id"]) == (
        200,
        3,
        "mine",
        "mine",
    )
    (expected,) = opened.classify([photo])
    assert [p["label"] for p in answer["predictions"]] == [p.label for p in expected.predictions]
    assert answer["model"] == {"name": "tiny", "version": 0}
    assert set(answer["timing_ms"]) == {"read", "decode", "queue", "inference", "total"}
    assert answer["timing_ms"]["total"] >= max(
        answer["timing_ms"][stage] for stage in ("read", "decode", "inference")
    )


def test_a_full_queue_refuses_before_a_byte_of_the_body_is_read(opened, photo, monkeypatch):
    target, client = pipeline(opened), Client(photo)
    refuse_all(monkeypatch, target)
    status, headers, answer = post(StandIn(target), client)
    assert (status, answer["code"], headers["retry-after"], client.asked) == (
        503,
        "queue_full",
        "3",
        0,
    )
    assert answer["detail"] == "4 images wait already, the most allowed; try again in 2.5 s"


def test_without_a_model_the_reason_is_told_before_a_byte_of_the_body_is_read(photo):
    client = Client(photo)
    status, headers, answer = post(StandIn(None), client)
    assert (status, answer["code"], answer["detail"], client.asked) == (
        503,
        "not_ready",
        "the model was refused: it is rotten",
        0,
    )
    assert "retry-after" not in headers


def test_a_body_that_is_declared_too_large_is_not_read(opened):
    client = Client(b"x")
    status, _, answer = post(
        StandIn(pipeline(opened), max_body_bytes=99), client, content_length="100"
    )
    assert (status, answer["code"], client.asked) == (413, "body_too_large", 0)
    assert answer["detail"] == "the body has 100 bytes; at most 99 are taken"


def test_a_body_that_grows_too_large_is_read_no_further(opened):
    client = Client(b"x" * 50, b"x" * 50, b"x" * 50, b"x" * 50)
    status, _, answer = post(StandIn(pipeline(opened), max_body_bytes=99), client)
    assert (status, answer["code"], client.asked) == (413, "body_too_large", 2)
    assert answer["detail"] == "the body has more than 99 bytes, the most that are taken"


def test_a_body_of_just_the_limit_is_taken(opened, photo):
    status, _, _ = post(
        StandIn(pipeline(opened), max_body_bytes=len(photo)),
        Client(photo),
        content_length=str(len(photo)),
    )
    assert status == 200


def test_a_client_that_stalls_is_told_so_at_the_deadline(opened, photo):
    client = Client(photo[:10], then="stalls")
    status, headers, answer = post(StandIn(pipeline(opened), deadline_ms=20.0), client)
    assert (status, answer["code"], headers["retry-after"]) == (504, "deadline_exceeded", "1")
    assert answer["detail"] == "only 10 bytes of the body came before the deadline"


def test_a_client_that_leaves_is_counted_and_not_logged(opened, photo, caplog):
    status, _, answer = post(StandIn(pipeline(opened)), Client(photo[:10], then="leaves"))
    assert (status, answer) == (499, {})
    assert caplog.records == []


def test_our_own_failure_is_logged_with_its_request_id_and_not_told(
    opened, photo, caplog, monkeypatch
):
    # Handlers of `service.server.bento`, if it was imported before, keep records from caplog.
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    broken = Classifier(
        dataclasses.replace(opened.model, sessions={ANY_SIZE: None}), name="broken", version=1
    )
    status, headers, answer = post(StandIn(pipeline(broken)), Client(photo), x_request_id="mine")
    assert (status, answer["code"], answer["detail"]) == (
        500,
        "internal_error",
        "The service failed; its log says why.",
    )
    assert headers["content-type"] == "application/problem+json"
    (record,) = caplog.records
    assert record.getMessage() == "request mine failed"
    assert record.exc_info is not None


def test_a_client_that_leaves_while_it_waits_costs_the_model_nothing(opened, photo, monkeypatch):
    """Its image is taken out of the queue: the answer's coroutine is cancelled, and nothing is
    logged as a failure.
    """
    cancelled = []

    async def never(*_: object, **__: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    target = pipeline(opened)
    monkeypatch.setattr(target, "classify", never)

    class Leaving(Client):
        async def receive(self) -> dict[str, object]:
            if self._parts:
                return {"type": "http.request", "body": self._parts.pop(0), "more_body": False}
            return {"type": "http.disconnect"}

    status, _, answer = post(StandIn(target), Leaving(photo))
    assert (status, answer, cancelled) == (499, {}, [True])


def test_what_is_fetched_counts_as_held(opened, photo):
    """An image by URL takes the room that it would take in the body."""
    held: list[int] = []

    class Stub:
        async def fetch(self, url: str, *, deadline: float, hold: Callable[[int], None]) -> bytes:
            hold(int(url))
            held.append(int(url))
            return photo

    for size, expected in ((300, 200), (600, 503)):
        worker = StandIn(pipeline(opened), max_inflight_bytes=500, max_body_bytes=500)
        worker.fetcher = Stub()
        body = json.dumps({"images": [{"url": str(size)}]}).encode()
        status, _, answer = post(worker, Client(body), content_type="application/json")
        assert (status, answer.get("code")) == (expected, None if expected == 200 else "too_busy")
    assert held == [300]
