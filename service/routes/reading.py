"""What is read from a request: parameters, content type, and the body within its limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from models.errors import BodyTooLarge, DeadlineExceeded, MalformedBody, UnsupportedContentType
from service.logs import CLIENT_SCOPE_KEY

T = TypeVar("T")

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
CURL_DEFAULT_TYPE = "application/x-www-form-urlencoded"
"""What `curl --data-binary` calls any body. The bytes are examined either way, so it is let through as octets."""


def client_key(request: Request) -> str:
    """Who asks, for fairness, quotas and canaries: the name of its API key, otherwise its address; empty if it has neither."""
    known: str | None = request.scope.get(CLIENT_SCOPE_KEY)
    return known or (request.client.host if request.client else "")


def content_type(request: Request) -> str:
    """The media type of the body in small letters, without parameters; empty if the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_identity(request: Request) -> None:
    """Raises `UnsupportedContentType` if the body is compressed: a small body could become any number of bytes."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise UnsupportedContentType(f"content encoding {encoding[:40]!r} is not taken; send the body as it is: images are compressed already")


async def read_body(request: Request, *, limit: int, deadline: float) -> bytes:
    """The body. Raises as `feed_body`."""
    chunks: list[bytes] = []
    await feed_body(request, chunks.append, limit=limit, deadline=deadline)
    return b"".join(chunks)


async def feed_body(request: Request, sink: Callable[[bytes], object], *, limit: int, deadline: float) -> None:
    """Hand the body to *sink* piece by piece as it comes; what *sink* raises ends the reading.

    Raises `BodyTooLarge` as soon as *limit* bytes are passed, from the header where it says so, and `DeadlineExceeded` if it is not there at
    *deadline*, which is on the clock of `time.monotonic`: a client that stalls holds nothing.
    """
    require_identity(request)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are taken")
    received = 0
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(f"the body has more than {limit:,} bytes, the most that are taken")
                sink(chunk)
    except TimeoutError as error:
        raise DeadlineExceeded(f"only {received:,} bytes of the body came before the deadline", retry_after_s=1.0) from error


def parse_json(data: bytes) -> object:
    """The JSON value in *data*, UTF-8. Raises `MalformedBody` saying where it is none; NaN and Infinity are none."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the JSON is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error
    except RecursionError as error:
        raise MalformedBody("the JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {str(error)[:120]}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What *work* gives. It is cancelled if the client closes the connection meanwhile, and `ClientDisconnect` raised.

    To be used once the body is read: the next that comes from the client can only be its leaving.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
