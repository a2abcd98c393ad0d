"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus

from starlette.responses import JSONResponse

from models.errors import LoupeError, RateLimited, Unauthorised, Unavailable


def problem(error: LoupeError, *, request_id: str) -> JSONResponse:
    """The response for *error*: `type, title, status, detail, code, request_id`, and `Retry-After` where waiting helps."""
    headers = {}
    if isinstance(error, (Unavailable, RateLimited)) and error.retry_after_s is not None:
        # Whole seconds, rounded up: a client that comes back too early is refused again.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorised):
        # RFC 9110 wants a 401 to say how to do better.
        headers["WWW-Authenticate"] = 'Bearer realm="loupe"'
    # What broke inside us is for the log, not for the caller.
    detail = (
        str(error) if error.status < HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, Unavailable) else "The service failed; its log says why."
    )
    body = {
        "type": f"urn:loupe:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": detail,
        "code": error.code,
        "request_id": request_id,
    }
    return JSONResponse(body, status_code=error.status, headers=headers, media_type="application/problem+json")
