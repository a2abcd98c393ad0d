"""What is read from a request: parameters, content type, and the body within its limits."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request

from models.errors import BadRequest, BodyTooLarge, DeadlineExceeded, UnsupportedContentType
from service.logs import CLIENT_SCOPE_KEY

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
CURL_DEFAULT_TYPE = "application/x-www-form-urlencoded"
"""What `curl --data-binary` calls any body. The bytes are examined either way, so it is let through as octets."""


def client_key(request: Request) -> str:
    """Who asks, for fairness, quotas and canaries: the name of its API key, otherwise its address; empty if it has neither."""
    known: str | None = request.scope.get(CLIENT_SCOPE_KEY)
    return known or (request.client.host if request.client else "")


def whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """Query parameter *name*, *low* to *high*. Raises `BadRequest`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    # isascii too: int() takes digits of every script.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise BadRequest(f"{name} is {text[:40]!r}; expected a whole number of {low} to {high}")
    return int(text)


def content_type(request: Request) -> str:
    """The media type of the body in small letters, without parameters; empty if the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_image_type(request: Request) -> None:
    """Raises `UnsupportedContentType` if the body is said to be something else than an image."""
    given = content_type(request)
    if given and given not in (*IMAGE_TYPES, CURL_DEFAULT_TYPE):
        raise UnsupportedContentType(f"content type {given[:80]!r} is not taken; send the image itself as {', '.join(IMAGE_TYPES)}")


async def read_body(request: Request, *, limit: int, deadline: float) -> bytes:
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
