"""What is read from a request: content type, the body within its limits, and JSON."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from models.errors import BodyTooLarge, DeadlineExceeded, MalformedBody, UnsupportedContentType

T = TypeVar("T")


TYPE_ENDS = re.compile("[;,]")
WATCH_AFTER_S = 0.25
"""How long an answer takes before a task watches whether its client is still connected. Most
answers are faster, and need no such task."""


def content_type(request: Request) -> str:
    """The media type of the body in small letters, without parameters; empty if there is none.

    Of several, the first counts: proxies join repeated headers with a comma.
    """
    return TYPE_ENDS.split(request.headers.get("content-type", ""), maxsplit=1)[0].strip().lower()


async def read_body(request: Request, *, limit: int, deadline: float) -> bytes:
    """The body. Raises as `feed_body`."""
    chunks: list[bytes] = []
    await feed_body(request, chunks.append, limit=limit, deadline=deadline)
    return b"".join(chunks)


async def feed_body(
    request: Request, sink: Callable[[bytes], object], *, limit: int, deadline: float
) -> None:
    """Give *sink* the body piece by piece as it arrives.

    Raises `BodyTooLarge` beyond *limit* bytes, at once if the header says so, `DeadlineExceeded` if
    the body is not complete at *deadline* (by `time.monotonic`), `ClientDisconnect` if the client
    leaves, and what *sink* raises. Raises `UnsupportedContentType` for a compressed body: a small
    one could expand without bound.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise UnsupportedContentType(
            f"content encoding {encoding[:40]!r} is not taken; send the body as it is: images are"
            " compressed already"
        )
    declared = request.headers.get("content-length", "")
    # isascii too: int() accepts the digits of every script.
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are taken")
    received, more = 0, True
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(
                        f"the body has more than {limit:,} bytes, the most that are taken"
                    )
                sink(chunk)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"only {received:,} bytes of the body came before the deadline", retry_after_s=1.0
        ) from error


def parse_json(data: bytes) -> object:
    """The JSON value in *data*: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises `MalformedBody` naming the place. NaN and Infinity are not JSON.
    """
    encoding = json.detect_encoding(data)
    try:
        return json.loads(data.decode(encoding), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        name, byte = encoding.removesuffix("-sig").upper(), data[error.start]
        fault = f"the JSON is not {name}: byte {error.start} is 0x{byte:02x}"
        raise MalformedBody(fault) from error
    except RecursionError as error:
        raise MalformedBody("the JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {str(error)[:120]}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*.

    If the client closes the connection, *work* is cancelled and `ClientDisconnect` raised. To be
    used once the body is read, so that *receive* can only say that the client left.
    """
    asking = asyncio.current_task()
    assert asking is not None, "runs in a task"
    watches: list[asyncio.Task[None]] = []
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        asking.cancel()

    timer = asyncio.get_running_loop().call_later(
        WATCH_AFTER_S, lambda: watches.append(asyncio.create_task(watch()))
    )
    try:
        return await work
    except asyncio.CancelledError:
        # If something else cancelled the task too, the error must continue.
        if left and asking.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        for task in watches:
            task.cancel()
