"""`POST /v1/classify` with the image itself as the body, on the shortest way from server to pipeline and back.

Nearly every request is one of these, and a small model answers in less time than middleware, router and response objects take. What
is decided here is decided by the functions that decide it elsewhere; whatever is not plain, such as a form, an option or a preflight, goes the
general way. A test holds the two ways' answers against each other.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from models.errors import RateLimited, Unavailable
from service.gate.admission import REFUSED_LABEL, Gate, Held
from service.http.answering import timing_ms
from service.http.body.reading import feed, unless_client_leaves
from service.http.handling import problem_of
from service.http.options import read_options
from service.http.wire import answer_bytes
from service.observe.logs import OUTCOME_SCOPE_KEY, client_of, log_request, request_id, started_at
from service.observe.metrics import METRICS
from service.problems import PROBLEM_TYPE, problem_bytes, problem_headers
from service.rollout.worker import Worker

PATH = "/v1/classify"
PLAIN_TYPES = frozenset((b"", b"application/x-www-form-urlencoded", b"application/octet-stream", b"image/jpeg", b"image/png", b"image/webp"))
"""The most usual types of an image as the body, curl's default first; any other type goes the general way."""
PLAIN_PARAMETERS = frozenset(("model", "version", "top_k"))
NO_PARAMETERS = QueryParams()
NOT_PLAIN = frozenset((b"content-encoding", b"origin"))

Headers = dict[bytes, bytes]


class Direct:
    """Answers for *worker*, behind *gate*; *log_sample* is the part of the answered requests that get a line in the log."""

    def __init__(self, worker: Worker, gate: Gate, *, log_sample: float) -> None:
        self._worker = worker
        self._gate = gate
        self._log_sample = log_sample

    def plain(self, scope: Scope) -> tuple[Headers, QueryParams] | None:
        """Headers and query of a request that is this way's; None if the general way is its own."""
        if scope["path"] != PATH or scope["method"] != "POST" or METRICS.tracer is not None:
            return None
        headers: Headers = dict(scope["headers"])
        if len(headers) != len(scope["headers"]) or headers.get(b"content-type", b"") not in PLAIN_TYPES or not NOT_PLAIN.isdisjoint(headers):
            return None
        parameters = QueryParams(scope["query_string"]) if scope["query_string"] else NO_PARAMETERS
        return (headers, parameters) if PLAIN_PARAMETERS.issuperset(parameters) else None

    async def answer(self, scope: Scope, receive: Receive, send: Send, *, headers: Headers, parameters: QueryParams) -> None:
        """Answer a plain request."""
        started = started_at(scope)
        name = request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        held = Held(self._gate, scope, receive)
        label, status, sent_bytes = REFUSED_LABEL, 0, 0
        try:
            try:
                self._gate.admit(scope, headers)
                label = PATH
                body = await self._classify(scope, held, headers, parameters, arrived=started, name=name)
                status, extra, code = 200, [(b"content-type", b"application/json")], None
            except (Unavailable, RateLimited) as error:
                # Those that come in floods: without a response object, at a third of the time.
                status, code, body = error.status, error.code, problem_bytes(error, request_id=name)
                extra = [(b"content-type", PROBLEM_TYPE.encode()), *_encoded(problem_headers(error))]
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                response, code = problem_of(error, path=PATH, request_id=name)
                status, body = response.status_code, bytes(response.body)
                extra = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
            scope[OUTCOME_SCOPE_KEY] = (label, code)
            METRICS.responded(label, status, time.monotonic() - started, problem_code=code)
            head = [(b"content-length", b"%d" % len(body)), *extra, (b"x-request-id", name.encode("ascii"))]
            if self._gate.ending():
                head.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": body})
            sent_bytes = len(body)
        finally:
            held.let_go()
            log_request(scope, sample=self._log_sample, status=status, request_id=name, sent_bytes=sent_bytes, started=started)

    async def _classify(self, scope: Scope, held: Held, headers: Headers, parameters: QueryParams, *, arrived: float, name: str) -> bytes:
        settings, client = self._worker.settings, client_of(scope)
        pipeline = self._worker.pipeline(parameters.get("model"), parameters.get("version"), client=client)
        deadline = arrived + settings.deadline_ms / 1000.0
        options = read_options(parameters, pipeline.classifier)
        pipeline.admit(deadline=deadline, client=client)
        chunks: list[bytes] = []
        declared = headers.get(b"content-length", b"").decode("latin-1")
        await feed(held.receive, chunks.append, declared=declared, limit=settings.max_body_bytes, deadline=deadline)
        read_s = time.monotonic() - arrived
        METRICS.stage("read", read_s)
        work = pipeline.classify(b"".join(chunks), top_k=options.top_k, deadline=deadline, client=client)
        result = await unless_client_leaves(held.receive, work)
        answered = time.monotonic()
        times = timing_ms(result.timing, read_s=read_s, total_s=answered - arrived)
        body = answer_bytes(pipeline.classifier, result.classification, request_id=name, timing_ms=times)
        METRICS.stage("respond", time.monotonic() - answered)
        return body


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


class Application(Starlette):
    """Starlette's application, where *direct* answers plain requests before anything of Starlette's is asked."""

    def __init__(self, *, direct: Direct, **options: Any) -> None:
        super().__init__(**options)
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        plain = self._direct.plain(scope) if scope["type"] == "http" else None
        if plain is None:
            await super().__call__(scope, receive, send)
        else:
            await self._direct.answer(scope, receive, send, headers=plain[0], parameters=plain[1])
