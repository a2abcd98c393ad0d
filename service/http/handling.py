"""What surrounds every endpoint: a request id, problems instead of exceptions, and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from models.errors import LoupeError, MethodNotAllowed, UnknownRoute
from service.observe.logs import OUTCOME_SCOPE_KEY, started_at
from service.observe.logs import request_id as name_request
from service.observe.metrics import METRICS
from service.problems import form_for
from service.rollout.worker import Worker

log = logging.getLogger("loupe")

CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; it appears in metrics only."""

EVERYTHING_ELSE = "/{path:path}"
EVERYTHING_ELSE_LABEL = "other"
ALL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = ("/livez", "/readyz", "/healthz")
"""BentoML's; other methods than GET on them come to us."""

Endpoint = Callable[[Request, Worker, str], Awaitable[Response]]
"""Takes the request, the worker, and the request's id. What it raises becomes a problem."""


def route(path: str, endpoint: Endpoint, worker: Worker, *, methods: Sequence[str], label: str | None = None) -> Route:
    """The route, with a request id, problems and metrics around *endpoint*. *label* names it in metrics, by default its template."""

    async def handle(request: Request) -> Response:
        request_id = _request_id(request)
        response, code = await _answer(endpoint, request, worker, request_id)
        return _finish(request, response, label=label or path, request_id=request_id, code=code)

    return Route(path, handle, methods=list(methods))


def refuse_everything_else(worker: Worker) -> Route:
    """The last route: whatever no other one takes."""
    return route(EVERYTHING_ELSE, _refuse, worker, methods=ALL_METHODS, label=EVERYTHING_ELSE_LABEL)


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusal, of a method that no route takes, in our form."""
    assert isinstance(error, HTTPException)
    refusal, request_id = _refusal(request), _request_id(request)
    response = form_for(request.scope["path"])(refusal, request_id=request_id)
    return _finish(request, response, label=EVERYTHING_ELSE_LABEL, request_id=request_id, code=refusal.code)


async def _refuse(request: Request, worker: Worker, request_id: str) -> Response:
    """405 where the path exists for other methods, 404 otherwise."""
    raise _refusal(request)


def _refusal(request: Request) -> MethodNotAllowed | UnknownRoute:
    path = request.scope["path"][:200]
    allowed = _allowed_methods(request)
    if allowed:
        return MethodNotAllowed(f"{request.method[:20]} is not allowed for {path}; allowed: {', '.join(allowed)}")
    return UnknownRoute(f"no route {path}; POST an image to /v1/classify; /docs lists every route")


def _allowed_methods(request: Request) -> list[str]:
    """What may be asked of the request's path; empty if there is no such route."""
    path = request.scope["path"]
    if path in PROBES:
        return ["GET", "HEAD"]
    known = [one for one in request.app.routes if one.path != EVERYTHING_ELSE and one.path_regex.match(path)]
    return sorted({method for one in known for method in one.methods})


def _finish(request: Request, response: Response, *, label: str, request_id: str, code: str | None) -> Response:
    """*response* with the headers that every answer has, counted."""
    response.headers["X-Request-Id"] = request_id
    if code == MethodNotAllowed.code:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    request.scope[OUTCOME_SCOPE_KEY] = (label, code)
    METRICS.responded(label, response.status_code, time.monotonic() - started_at(request.scope), problem_code=code)
    return response


async def _answer(endpoint: Endpoint, request: Request, worker: Worker, request_id: str) -> tuple[Response, str | None]:
    """The endpoint's response, or the problem it ran into and its code."""
    try:
        return await endpoint(request, worker, request_id), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
        return problem_of(error, path=request.scope["path"], request_id=request_id)


def problem_of(error: Exception, *, path: str, request_id: str) -> tuple[Response, str]:
    """The answer to a request for *path* that ran into *error*, and its code. What is our fault goes to the log."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_LEFT), "client_left"
    if not isinstance(error, LoupeError):
        log.error("request %s failed", request_id, exc_info=error)
        error = LoupeError()
    elif error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request %s: %s", request_id, error.code, exc_info=error)
    return form_for(path)(error, request_id=request_id), error.code


def _request_id(request: Request) -> str:
    return name_request(request.headers.get("x-request-id", ""))
