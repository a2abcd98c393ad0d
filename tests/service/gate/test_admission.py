"""Admission without sockets: what is refused before a byte is read, and what the bodies may hold
together.
"""

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.gate import keys
from service.gate.admission import Gate
from service.gate.keys import KeyRing, add_key
from service.gate.rate_limit import RateLimit
from service.http.app import Application
from service.observe import logs
from service.observe.logs import BODY_BYTES_SCOPE_KEY, CLIENT_SCOPE_KEY, JsonLines, TextLines
from service.settings import ServiceSettings
from tests.service.held import PATIENCE_S


class Visit:
    """A request that sends *parts* of a body, and what came back."""

    def __init__(self, *parts: bytes, path: str = "/v1/classify", **headers: str) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": ("192.0.2.7", 1),
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
        }
        self._parts = list(parts)
        self.asked = 0
        self.sent: list[dict] = []

    async def receive(self) -> dict[str, object]:
        self.asked += 1
        return {"type": "http.request", "body": self._parts.pop(0), "more_body": bool(self._parts)}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    def problem(self) -> tuple[int, str]:
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])["code"]


class Reader:
    """An endpoint that reads a whole body, waits until the test lets it go, and answers with
    *status*.
    """

    def __init__(self, status: int = 200) -> None:
        self.reading = asyncio.Event()
        self.go = asyncio.Event()
        self._status = status

    async def __call__(self, request: Request, worker: object, request_id: str) -> Response:
        async for _ in request.stream():
            pass
        self.reading.set()
        await self.go.wait()
        return Response(b"fine", status_code=self._status)


def drive(test) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(bounded())


def admission(
    reader: Reader,
    *,
    room: int = 100,
    sample: float = 1.0,
    rate: RateLimit | None = None,
    **options: object,
) -> Application:
    worker = SimpleNamespace(settings=ServiceSettings(log_sample=sample))
    gate = Gate(rate=rate, max_inflight_bytes=room, **options)
    return Application(
        worker, gate=gate, routes=[("/v1/classify", "POST", reader), ("/metrics", "POST", reader)]
    )


def test_bodies_share_a_room_and_one_that_does_not_fit_is_refused_unread():
    async def test() -> None:
        reader = Reader()
        target = admission(reader, room=100)
        first = Visit(b"x" * 40, b"x" * 40)
        running = asyncio.create_task(target(first.scope, first.receive, first.send))
        await reader.reading.wait()
        assert first.scope[BODY_BYTES_SCOPE_KEY] == 80
        second = Visit(b"x" * 30, content_length="30")
        await target(second.scope, second.receive, second.send)
        assert (second.problem(), second.asked) == ((503, "too_busy"), 0)
        headers = dict(second.sent[0]["headers"])
        assert int(headers[b"retry-after"]) >= 1
        assert headers[b"x-request-id"]
        # One that does not say how long it is, is refused when it has grown too long.
        third = Visit(b"x" * 15, b"x" * 15)
        await target(third.scope, third.receive, third.send)
        assert json.loads(third.sent[1]["body"])["detail"].startswith(
            "request bodies hold 95 of 100 bytes; try again in 1."
        )
        # What it held is free again.
        fitting = Visit(b"x" * 20, content_length="20")
        reader.go.set()
        await target(fitting.scope, fitting.receive, fitting.send)
        await running
        assert fitting.sent[0]["status"] == first.sent[0]["status"] == 200

    drive(test)


def test_an_empty_room_takes_a_body_of_any_size():
    async def test() -> None:
        reader = Reader()
        reader.go.set()
        visit = Visit(b"x" * 500, content_length="500")
        await admission(reader, room=100)(visit.scope, visit.receive, visit.send)
        assert visit.sent[0]["status"] == 200

    drive(test)


def test_what_it_declares_and_never_sends_takes_no_room():
    async def test() -> None:
        reader = Reader()
        target = admission(reader, room=100)
        liar = Visit(b"x", content_length="99")
        running = asyncio.create_task(target(liar.scope, liar.receive, liar.send))
        await reader.reading.wait()
        reader.go.set()
        honest = Visit(b"x" * 90, content_length="90")
        await target(honest.scope, honest.receive, honest.send)
        await running
        assert honest.sent[0]["status"] == 200

    drive(test)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", None),
        ("/docs", None),
        ("/docs/docs.js", None),
        ("/openapi.json", None),
        ("/metrics", "admin"),
        ("/v2/health/ready", None),
        ("/v1/classify", "predict"),
        ("/v2/models/zoo/infer", "predict"),
        ("/predictions/zoo", "predict"),
        ("/docsx", "predict"),
        ("//", "predict"),
        ("/v2/health/ready/x", "predict"),
        ("/anything", "predict"),
    ],
)
def test_what_is_not_open_by_name_needs_a_key(tmp_path, path, scope):
    add_key(tmp_path / "keys", name="app", scopes=("predict",))
    assert (
        Gate(
            max_inflight_bytes=1, keys=KeyRing(tmp_path / "keys"), metrics_need_admin=True
        ).scope_for(path)
        == scope
    )


def test_without_keys_all_but_what_is_for_admins_is_open():
    assert Gate(max_inflight_bytes=1).scope_for("/v1/classify") is None
    assert Gate(max_inflight_bytes=1).scope_for("/metrics") is None
    visit = Visit(path="/metrics")
    drive(
        lambda: admission(Reader(), metrics_need_admin=True)(visit.scope, visit.receive, visit.send)
    )
    assert visit.problem() == (403, "forbidden")


def test_the_name_of_the_key_is_left_for_the_routes(tmp_path):
    secret = add_key(tmp_path / "keys", name="app", scopes=("predict",))

    async def test() -> None:
        reader = Reader()
        reader.go.set()
        visit = Visit(b"x", authorization=f"bearer {secret}")
        await admission(reader, keys=KeyRing(tmp_path / "keys"))(
            visit.scope, visit.receive, visit.send
        )
        assert visit.scope[CLIENT_SCOPE_KEY] == "app"

    drive(test)


def statuses(target: Application, *visits: Visit) -> list[int]:
    """What the *visits* are answered with, one after another."""

    async def test() -> None:
        for visit in visits:
            await target(visit.scope, visit.receive, visit.send)

    drive(test)
    return [visit.sent[0]["status"] for visit in visits]


@pytest.fixture
def watched(tmp_path, monkeypatch) -> tuple[str, Application, list[str]]:
    """A key, an admission that asks for one and lets an address guess three times, and the keys
    that were compared.
    """
    secret = add_key(tmp_path / "keys", name="app", scopes=("predict",))
    compared: list[str] = []
    owner = KeyRing.owner
    monkeypatch.setattr(
        KeyRing, "owner", lambda ring, given: (compared.append(given), owner(ring, given))[1]
    )
    reader = Reader()
    reader.go.set()
    return (
        secret,
        admission(
            reader,
            keys=KeyRing(tmp_path / "keys"),
            costly=RateLimit(rate_per_s=0.001, burst=3),
        ),
        compared,
    )


def test_a_flood_of_wrong_keys_is_refused_by_its_address_before_they_are_compared(watched):
    secret, target, compared = watched
    flood = [Visit(b"x", x_api_key=f"wrong-{number}") for number in range(50)]
    assert statuses(target, *flood) == [401] * 3 + [429] * 47
    assert compared == ["wrong-0", "wrong-1", "wrong-2"]
    assert flood[-1].asked == 0, "nothing of the body was read"
    assert json.loads(flood[-1].sent[1]["body"])["detail"].startswith(
        "192.0.2.7 sent too many wrong API keys; try again in "
    )
    assert int(dict(flood[-1].sent[0]["headers"])[b"retry-after"]) > 0
    elsewhere = Visit(b"x", x_api_key=secret)
    elsewhere.scope["client"] = ("192.0.2.8", 1)
    assert statuses(target, elsewhere) == [200], "other addresses are served as before"


def test_right_keys_and_missing_ones_are_no_wrong_keys(watched):
    secret, target, _ = watched
    assert statuses(target, *(Visit(b"x", x_api_key=secret) for _ in range(10))) == [200] * 10
    assert statuses(target, *(Visit(b"x") for _ in range(10))) == [401] * 10
    assert statuses(target, Visit(b"x", x_api_key=secret)) == [200]


def test_an_ipv6_network_guesses_as_one_address(watched):
    _, target, compared = watched
    flood = [Visit(b"x", x_api_key="wrong") for _ in range(10)]
    for number, visit in enumerate(flood):
        visit.scope["client"] = (f"2001:db8:1:2:{number}::1", 1)
    assert statuses(target, *flood) == [401] * 3 + [429] * 7
    assert len(compared) == 3


def test_keys_that_cannot_be_read_are_no_fault_of_the_client(tmp_path, monkeypatch):
    secret = add_key(tmp_path / "keys", name="app", scopes=("predict",))
    access = {
        "keys": KeyRing(tmp_path / "keys"),
        "costly": RateLimit(rate_per_s=0.001, burst=3),
    }
    (tmp_path / "keys").unlink()
    monkeypatch.setattr(keys, "TRUST_UNREAD_S", -1.0)
    visits = [Visit(b"x", x_api_key=secret) for _ in range(9)]
    assert statuses(admission(Reader(), **access), *visits) == [503] * 9
    assert visits[0].problem() == (503, "not_ready")


def test_scrapes_of_one_address_are_limited_and_count_for_no_other_rate():
    reader = Reader()
    reader.go.set()
    costly = RateLimit(rate_per_s=0.001, burst=3)
    target = admission(reader, costly=costly, rate=RateLimit(rate_per_s=0.001, burst=1))
    scrapes = [Visit(b"", path="/metrics") for _ in range(5)]
    assert statuses(target, *scrapes) == [200] * 3 + [429] * 2
    assert scrapes[-1].problem() == (429, "rate_limited")
    assert statuses(target, Visit(b""), Visit(b"")) == [200, 429]


def test_answers_close_their_connection_once_the_end_has_begun():
    async def test() -> None:
        reader = Reader()
        reader.go.set()
        visit = Visit(b"x")
        await admission(reader, ending=lambda: True)(visit.scope, visit.receive, visit.send)
        assert (b"connection", b"close") in visit.sent[0]["headers"]

    drive(test)


@pytest.mark.parametrize(
    ("sample", "status", "lines"), [(1.0, 200, 1), (0.0, 200, 0), (0.0, 404, 1), (0.0, 503, 1)]
)
def test_a_sample_of_the_good_and_all_of_the_bad_are_logged(
    caplog, monkeypatch, sample, status, lines
):
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    caplog.set_level(logging.INFO, logger="loupe.request")
    visit = Visit(b"x", x_request_id="mine")

    async def test() -> None:
        reader = Reader(status)
        reader.go.set()
        await admission(reader, sample=sample)(visit.scope, visit.receive, visit.send)

    drive(test)
    assert [
        (r.fields["status"], r.fields["request_id"], r.fields["answer_bytes"])
        for r in caplog.records
    ] == [(status, "mine", 4)] * lines


def test_a_line_is_json_on_one_line_whatever_a_client_sends():
    record = logging.LogRecord("loupe", logging.INFO, "", 0, 'a "b"\n%s', ("\x00 日本",), None)
    record.fields = {"route": "/v1\n"}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert {**json.loads(line), "time": ""} == {
        "time": "",
        "level": "info",
        "message": 'a "b"\n\x00 日本',
        "route": "/v1\n",
    }
    assert TextLines().format(record).endswith('INFO a "b"\\n\\x00 日本 route=/v1\\n')


def test_a_flood_of_refusals_is_told_of_and_not_written_out(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    monkeypatch.setattr(logs, "_REFUSALS", {status: logs._Budget(3) for status in (401, 503)})
    now_s = [7.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now_s[0])
    caplog.set_level(logging.INFO, logger="loupe.request")
    for _ in range(5):
        logs.log_request(
            Visit().scope, sample=0.0, status=503, request_id="r", sent_bytes=0, started=0.0
        )
    assert len(caplog.records) == 3
    # Another refusal has lines of its own.
    for _ in range(5):
        logs.log_request(
            Visit().scope, sample=0.0, status=401, request_id="r", sent_bytes=0, started=0.0
        )
    assert [record.fields["status"] for record in caplog.records] == [503] * 3 + [401] * 3
    del caplog.records[3:]
    now_s[0] = 8.0
    logs.log_request(
        Visit().scope, sample=0.0, status=503, request_id="r", sent_bytes=0, started=0.0
    )
    logs.log_request(
        Visit().scope, sample=0.0, status=404, request_id="r", sent_bytes=0, started=0.0
    )
    assert [record.fields.get("left_out") for record in caplog.records[3:]] == [2, None]
