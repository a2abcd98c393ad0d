"""Errors as HTTP answers.

Most are `application/problem+json` (RFC 9457). The Open Inference Protocol and TorchServe have
forms of their own.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from models.errors import LoupeError, MethodNotAllowed, RateLimited, Unauthorised, Unavailable

log = logging.getLogger("loupe")

PROBLEM_TYPE = "application/problem+json"
CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; it appears in metrics only."""

Form = Callable[..., Response]
"""Takes an error and `request_id`, gives its answer."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""As Starlette's `JSONResponse`, which makes an encoder for each answer."""


def answer_to(error: Exception, *, path: str, request_id: str) -> tuple[Response, str]:
    """The answer to a request for *path* that failed with *error*, and its code.

    Failures of the service itself are logged.
    """
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_LEFT), "client_left"
    if not isinstance(error, LoupeError):
        log.error("request %s failed", request_id, exc_info=error)
        error = LoupeError()
    elif error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request %s: %s", request_id, error.code, exc_info=error)
    return form_for(path)(error, request_id=request_id), error.code


def problem(error: LoupeError, *, request_id: str) -> Response:
    """The response for *error*: `type, title, status, detail, code, request_id`.

    It has `Retry-After` if waiting helps.
    """
    return Response(
        _encode(describe(error) | {"request_id": request_id}),
        status_code=error.status,
        headers=problem_headers(error),
        media_type=PROBLEM_TYPE,
    )


def inference_protocol_error(error: LoupeError, *, request_id: str) -> JSONResponse:
    """The Open Inference Protocol's form: `error`, and beside it our `code`."""
    return JSONResponse(
        {"error": _detail(error), "code": error.code},
        status_code=error.status,
        headers=problem_headers(error),
    )


def torchserve_error(error: LoupeError, *, request_id: str) -> JSONResponse:
    """TorchServe's form: `code` (the status), `type`, `message`."""
    body = {"code": error.status, "type": error.code, "message": _detail(error)}
    return JSONResponse(body, status_code=error.status, headers=problem_headers(error))


def form_for(path: str) -> Form:
    """The form in which the clients of *path* expect an error."""
    if path == "/v2" or path.startswith("/v2/"):
        return inference_protocol_error
    return torchserve_error if path.startswith("/predictions/") else problem


def describe(error: LoupeError) -> dict[str, object]:
    """The members of a problem, but for the request's id."""
    return {
        "type": f"urn:loupe:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": _detail(error),
        "code": error.code,
    }


def _detail(error: LoupeError) -> str:
    # What broke inside us is for the log, not for the caller.
    ours = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, Unavailable)
    return "The service failed; its log says why." if ours else str(error)


def problem_headers(error: LoupeError) -> dict[str, str]:
    """What the header of an answer says of *error*."""
    if isinstance(error, Unauthorised):
        # RFC 9110 wants a 401 to say how to do better.
        return {"WWW-Authenticate": 'Bearer realm="loupe"'}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, (Unavailable, RateLimited)) and error.retry_after_s is not None:
        # Whole seconds, rounded up: a client that comes back too early is refused again.
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}
