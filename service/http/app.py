"""The HTTP interface as one ASGI application.

Every request takes the same steps: gate, route, endpoint, answer, metrics, log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from service.gate.admission import HELD_SCOPE_KEY, Gate, Held, open_gate
from service.http.classify import classify
from service.http.inspecting import list_layers, show_features, show_preprocessing
from service.http.pages import (
    show_docs,
    show_docs_file,
    show_docs_slash,
    show_page_file,
    show_playground,
)
from service.http.routing import Endpoint, RoutingTable
from service.http.site import list_models, show_metrics, show_model, show_openapi
from service.observe.logs import OUTCOME_SCOPE_KEY, log_request, request_id, started_at
from service.observe.metrics import METRICS
from service.problems import answer_to
from service.protocols.bentoml_client import classify_natively, show_schema
from service.protocols.inference_protocol import (
    infer,
    live,
    model_metadata,
    model_ready,
    ready,
    repository_index,
    server_metadata,
)
from service.protocols.torchserve import ping, predict
from service.rollout.worker import Worker

if TYPE_CHECKING:
    from service.observe.tracing import Tracing

AT_THE_GATE, UNROUTED = "admission", "other"
"""Routes, in metrics and the log, of requests that the gate refused, and of unknown paths."""

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("/v1/classify", "POST", classify),
    ("/v2/models/{name}/infer", "POST", infer),
    ("/v2/models/{name}/versions/{version}/infer", "POST", infer),
    ("/predictions/{name}", "POST PUT", predict),
    ("/predictions/{name}/{version}", "POST PUT", predict),
    ("/classify", "POST", classify_natively),
    ("/v1/models", "GET", list_models),
    ("/v1/models/{name}", "GET", show_model),
    ("/v1/models/{name}/layers", "GET", list_layers),
    ("/v1/features", "POST", show_features),
    ("/v1/preprocess", "POST", show_preprocessing),
    ("/v2", "GET", server_metadata),
    ("/v2/health/live", "GET", live),
    ("/v2/health/ready", "GET", ready),
    ("/v2/models/{name}", "GET", model_metadata),
    ("/v2/models/{name}/versions/{version}", "GET", model_metadata),
    ("/v2/models/{name}/ready", "GET", model_ready),
    ("/v2/models/{name}/versions/{version}/ready", "GET", model_ready),
    ("/v2/repository/index", "POST", repository_index),
    ("/ping", "GET", ping),
    ("/metrics", "GET", show_metrics),
    ("/schema.json", "GET", show_schema),
    ("/openapi.json", "GET", show_openapi),
    ("/docs", "GET", show_docs),
    ("/docs/", "GET", show_docs_slash),
    ("/docs/{file}", "GET", show_docs_file),
    ("/", "GET", show_playground),
    ("/page/{file}", "GET", show_page_file),
)
"""Path, methods, endpoint."""


class Application(Starlette):
    """Answers for *worker*, behind a gate: *gate*, or the one that its settings describe.

    *ending* says whether the process was asked to end. Starlette only brings the lifespan; requests
    pass neither its middleware nor its router.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        gate: Gate | None = None,
        routes: Iterable[tuple[str, str, Endpoint]] = ROUTES,
        lifespan: Lifespan[Starlette] | None = None,
        ending: Callable[[], bool] = lambda: False,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(lifespan=lifespan)
        self._table = RoutingTable(routes)
        self._worker = worker
        self._gate = gate or open_gate(worker.settings, ending=ending)
        self._outermost: ASGIApp = self._answer
        origins = worker.settings.cors_origins
        if origins:
            # Outside the gate: a preflight has no key, and a page must be able to read refusals.
            self._outermost = CORSMiddleware(
                self._answer,
                allow_origins=[origin.strip() for origin in origins.split(",")],
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Request-Id"],
            )
        if tracing is not None:
            self._outermost = tracing.around(self._outermost)

    @asynccontextmanager
    async def watching_keys(self) -> AsyncIterator[None]:
        """Keeps the gate's keys current."""
        task = asyncio.create_task(self._gate.watch_keys(), name="watch keys")
        try:
            yield
        finally:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._outermost(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = started_at(scope)
        held = scope[HELD_SCOPE_KEY] = Held(self._gate, scope, receive)
        request = Request(scope, held.receive)
        name = request_id(request.headers.get("x-request-id", ""))
        route, code, status, sent_bytes = AT_THE_GATE, None, 0, 0
        try:
            try:
                self._gate.admit(scope, request.headers)
                route = UNROUTED
                route, endpoint, scope["path_params"] = self._table.find(
                    scope["method"], scope["path"]
                )
                scope["loupe.route"] = route
                response = await endpoint(request, self._worker, name)
            except Exception as error:  # noqa: BLE001 - the client always gets an answer
                response, code = answer_to(error, path=scope["path"], request_id=name)
            response.headers["X-Request-Id"] = name
            if self._gate.ending():
                response.headers["Connection"] = "close"
            status = response.status_code
            scope[OUTCOME_SCOPE_KEY] = (route, code)
            METRICS.responded(route, status, time.monotonic() - started, problem_code=code)
            await response(scope, receive, send)
            sent_bytes = int(response.headers.get("content-length", 0))
        finally:
            held.release()
            log_request(
                scope,
                sample=self._worker.settings.log_sample,
                status=status,
                request_id=name,
                sent_bytes=sent_bytes,
                started=started,
            )
