"""The HTTP interface, as one Starlette application. Thin: it reads requests, asks the pipeline, and writes answers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from models.errors import (
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    LoupeError,
    MethodNotAllowed,
    UnknownModel,
    UnknownRoute,
    UnsupportedContentType,
)
from service.classifier import Classification
from service.metrics import CONTENT_TYPE, METRICS, exposition
from service.pipeline import Timing
from service.playground import PAGE
from service.problems import problem
from service.worker import Worker

log = logging.getLogger("loupe")

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
CURL_DEFAULT_TYPE = "application/x-www-form-urlencoded"
"""What `curl --data-binary` calls any body. The bytes are examined either way, so it is let through as octets."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_TOP_K = 1000
CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; it appears in metrics only."""

EVERYTHING_ELSE = "/{path:path}"
EVERYTHING_ELSE_LABEL = "other"
PROBES = ("/livez", "/readyz", "/healthz")
"""BentoML's; other methods than GET on them come to us."""

Endpoint = Callable[[Request, Worker, str], Awaitable[Response]]


def create_app(worker: Worker, *, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """The application that answers for *worker*."""
    routes = [
        _route("/v1/classify", classify, worker, methods=["POST"]),
        _route("/v1/models", list_models, worker, methods=["GET"]),
        _route("/v1/models/{name}", show_model, worker, methods=["GET"]),
        _route("/metrics", show_metrics, worker, methods=["GET"]),
        _route("/", show_playground, worker, methods=["GET"]),
        # Last: whatever no other route takes.
        _route(EVERYTHING_ELSE, refuse, worker, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"], label=EVERYTHING_ELSE_LABEL),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_exception})


async def classify(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v1/classify`: the image itself is the body."""
    arrived = time.monotonic()
    pipeline = worker.pipeline()
    deadline = arrived + worker.settings.deadline_ms / 1000.0
    top_k = _whole_number(request, "top_k", default=min(5, len(pipeline.classifier.manifest.labels)), low=1, high=MAX_TOP_K)
    _require_model(request, worker)
    _require_image_type(request)
    pipeline.admit()
    encoded = await _read_body(request, limit=worker.settings.max_body_bytes, deadline=deadline)
    read = time.monotonic()
    METRICS.stage("read", read - arrived)
    classification, timing = await pipeline.classify(encoded, top_k=top_k, deadline=deadline)
    answered = time.monotonic()
    body = {
        "model": {"name": pipeline.classifier.name, "version": pipeline.classifier.version},
        **_classification(classification),
        "request_id": request_id,
        "timing_ms": _timing_ms(timing, read_s=read - arrived, total_s=answered - arrived),
    }
    response = JSONResponse(body)
    METRICS.stage("respond", time.monotonic() - answered)
    return response


async def list_models(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models`: what is served."""
    classifier = worker.pipeline().classifier
    return JSONResponse({"models": [{"name": classifier.name, "version": classifier.version}]})


async def show_model(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v1/models/{name}`: the public part of the manifest."""
    classifier = worker.pipeline().classifier
    _check_name(request.path_params["name"], classifier.name)
    return JSONResponse({"name": classifier.name, "version": classifier.version, **classifier.manifest.public()})


async def show_metrics(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /metrics`: Prometheus text of all workers."""
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE})


async def show_playground(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /`: a page to drop a photo on."""
    return FileResponse(PAGE, media_type="text/html")


async def refuse(request: Request, worker: Worker, request_id: str) -> Response:
    """Everything else: 405 where the path exists for other methods, 404 otherwise."""
    raise _refusal(request)


def _refusal(request: Request) -> MethodNotAllowed | UnknownRoute:
    path = request.scope["path"][:200]
    allowed = _allowed_methods(request)
    if allowed:
        return MethodNotAllowed(f"{request.method[:20]} is not allowed for {path}; allowed: {', '.join(allowed)}")
    return UnknownRoute(f"no route {path}; POST an image to /v1/classify, or GET /, /v1/models, /metrics, /livez, /readyz")


def _allowed_methods(request: Request) -> list[str]:
    """What may be asked of the request's path; empty if there is no such route."""
    path = request.scope["path"]
    if path in PROBES:
        return ["GET", "HEAD"]
    known = [route for route in request.app.routes if route.path != EVERYTHING_ELSE and route.path_regex.match(path)]
    return sorted({method for route in known for method in route.methods})


def _route(path: str, endpoint: Endpoint, worker: Worker, *, methods: list[str], label: str | None = None) -> Route:
    """The route, with a request id, problems and metrics around *endpoint*. *label* names it in metrics, by default its template."""

    async def handle(request: Request) -> Response:
        started = time.monotonic()
        request_id = _request_id(request)
        response, code = await _answer(endpoint, request, worker, request_id)
        return _finish(request, response, route=label or path, request_id=request_id, started=started, code=code)

    return Route(path, handle, methods=methods)


def _finish(request: Request, response: Response, *, route: str, request_id: str, started: float, code: str | None) -> Response:
    """*response* with the headers that every answer has, counted."""
    response.headers["X-Request-Id"] = request_id
    if code == MethodNotAllowed.code:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    METRICS.responded(route, response.status_code, time.monotonic() - started, problem_code=code)
    return response


async def _answer(endpoint: Endpoint, request: Request, worker: Worker, request_id: str) -> tuple[Response, str | None]:
    """The endpoint's response, or the problem it ran into and its code."""
    try:
        return await endpoint(request, worker, request_id), None
    except LoupeError as error:
        if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.exception("request %s: %s", request_id, error.code)
        return problem(error, request_id=request_id), error.code
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT), "client_left"
    except Exception:
        log.exception("request %s failed", request_id)
        return problem(LoupeError(), request_id=request_id), LoupeError.code


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusal, of a method that no route takes, in our form."""
    assert isinstance(error, HTTPException)
    refusal, request_id = _refusal(request), _request_id(request)
    response = problem(refusal, request_id=request_id)
    return _finish(request, response, route=EVERYTHING_ELSE_LABEL, request_id=request_id, started=time.monotonic(), code=refusal.code)


def _request_id(request: Request) -> str:
    """The client's X-Request-Id if it is harmless, otherwise a new one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    # isascii too: int() takes digits of every script.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise BadRequest(f"{name} is {text[:40]!r}; expected a whole number of {low} to {high}")
    return int(text)


def _require_model(request: Request, worker: Worker) -> None:
    classifier = worker.pipeline().classifier
    _check_name(request.query_params.get("model", classifier.name), classifier.name)
    version = request.query_params.get("version", str(classifier.version))
    if version != str(classifier.version):
        raise UnknownModel(f"version {version[:40]!r} of {classifier.name} is not served; served: {classifier.version}")


def _check_name(asked: str, served: str) -> None:
    if asked != served:
        raise UnknownModel(f"model {asked[:80]!r} is not served; served: {served}")


def _require_image_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type and content_type not in (*IMAGE_TYPES, CURL_DEFAULT_TYPE):
        raise UnsupportedContentType(f"content type {content_type[:80]!r} is not taken; send the image itself as {', '.join(IMAGE_TYPES)}")


async def _read_body(request: Request, *, limit: int, deadline: float) -> bytes:
    """The body. Raises `BodyTooLarge` as soon as *limit* bytes are passed, from the header where it says so.

    Raises `DeadlineExceeded` if it is not there at *deadline*, which is on the clock of `time.monotonic`: a client that stalls holds nothing.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are taken")
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(f"the body has more than {limit:,} bytes, the most that are taken")
                chunks.append(chunk)
    except TimeoutError as error:
        raise DeadlineExceeded(f"only {received:,} bytes of the body came before the deadline", retry_after_s=1.0) from error
    return b"".join(chunks)


def _classification(classification: Classification) -> dict[str, object]:
    predictions = [{"label": p.label, "index": p.index, "probability": p.probability} for p in classification.predictions]
    return {"predictions": predictions, "abstained": classification.abstained}


def _timing_ms(timing: Timing, *, read_s: float, total_s: float) -> dict[str, float]:
    stages = {"read": read_s, "decode": timing.decode_s, "queue": timing.queue_s, "inference": timing.inference_s, "total": total_s}
    return {name: round(seconds * 1000.0, 3) for name, seconds in stages.items()}
