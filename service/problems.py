"""Errors as HTTP answers.

Most are `application/problem+json` (RFC 9457). The Open Inference Protocol and TorchServe have
forms of their own.
"""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from models.errors import LoupeError, MethodNotAllowed, RateLimited, Unauthorised, Unavailable

log = logging.getLogger("loupe")

PROBLEM_TYPE = "application/problem+json"
CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; it appears in metrics only."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""The encoding of Starlette's `JSONResponse`, which makes an encoder for each answer."""


def answer_to(error: Exception, *, path: str, request_id: str) -> tuple[Response, str]:
    """The answer to a request for *path* that failed with *error*, and its code."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_LEFT), "client_left"
    known = known_error(error, request_id=request_id)
    return problem(known, request_id=request_id, path=path), known.code


def known_error(error: Exception, *, request_id: str) -> LoupeError:
    """*error*, or a plain internal error for one that is not ours. Logs internal errors."""
    known = error if isinstance(error, LoupeError) else LoupeError()
    if known.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request %s failed", request_id, exc_info=error)
    return known


def problem(error: LoupeError, *, request_id: str, path: str = "/") -> Response:
    """The response for *error*, in the form that the clients of *path* expect.

    It has `Retry-After` if waiting helps.
    """
    media_type, body = "application/json", describe(error) | {"request_id": request_id}
    if path == "/v2" or path.startswith("/v2/"):
        body = {"error": _detail(error), "code": error.code}
    elif path.startswith("/predictions/"):
        body = {"code": error.status, "type": error.code, "message": _detail(error)}
    else:
        media_type = PROBLEM_TYPE
    return Response(
        _encode(body),
        status_code=error.status,
        headers=_headers(error),
        media_type=media_type,
    )


def describe(error: LoupeError) -> dict[str, object]:
    """The members of a problem, without the request's id."""
    return {
        "type": f"urn:loupe:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": _detail(error),
        "code": error.code,
    }


def _detail(error: LoupeError) -> str:
    # The reason of an internal error is for the log, not for the client.
    ours = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, Unavailable)
    return "The service failed; its log says why." if ours else str(error)


def _headers(error: LoupeError) -> dict[str, str]:
    """The header fields that *error* adds to its answer."""
    if isinstance(error, Unauthorised):
        # RFC 9110 requires it of a 401.
        return {"WWW-Authenticate": 'Bearer realm="loupe"'}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, (Unavailable, RateLimited)) and error.retry_after_s is not None:
        # Rounded up: a client that comes back too early is refused again.
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}
