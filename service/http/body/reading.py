"""What is read from a request: parameters, content type, and the body within its limits."""

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
from service.observe.logs import client_of

T = TypeVar("T")


TYPE_ENDS = re.compile("[;,]")
WATCH_AFTER_S = 0.25
"""How long an answer takes before it is worth while to look whether its client is still there."""


def client_key(request: Request) -> str:
    """Who asks, for fairness, quotas and canaries."""
    return client_of(request.scope)


def content_type(request: Request) -> str:
    """The media type of the body in small letters, without parameters; empty if the client names
    none.

    Of several, the first counts: proxies join headers that a client sent twice with a comma.
    """
    return TYPE_ENDS.split(request.headers.get("content-type", ""), maxsplit=1)[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Whether *media_type* names JSON: `application/json`, `text/json`, `application/vnd.api+json`."""
    return media_type.endswith(("/json", "+json"))


def require_identity(request: Request) -> None:
    """Raises `UnsupportedContentType` if the body is compressed: a small body could become any
    number of bytes.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise UnsupportedContentType(
            f"content encoding {encoding[:40]!r} is not taken; send the body as it is: images are"
            " compressed already"
        )


async def read_body(request: Request, *, limit: int, deadline: float) -> bytes:
    """The body. Raises as `feed_body`."""
    chunks: list[bytes] = []
    await feed_body(request, chunks.append, limit=limit, deadline=deadline)
    return b"".join(chunks)


async def feed_body(
    request: Request, sink: Callable[[bytes], object], *, limit: int, deadline: float
) -> None:
    """Hand the body to *sink* piece by piece as it comes; what *sink* raises ends the reading.

    Raises `UnsupportedContentType` for a compressed one, otherwise as `feed`.
    """
    require_identity(request)
    await feed(
        request.receive,
        sink,
        declared=request.headers.get("content-length", ""),
        limit=limit,
        deadline=deadline,
    )


async def feed(
    receive: Receive, sink: Callable[[bytes], object], *, declared: str, limit: int, deadline: float
) -> None:
    """Hand what comes of a body to *sink*. *declared* is its length as the header says it.

    Raises `BodyTooLarge` as soon as *limit* bytes are passed, from the header where it says so, and
    `DeadlineExceeded` if it is not there at *deadline*, which is on the clock of `time.monotonic`:
    a client that stalls holds nothing. `ClientDisconnect` if the client leaves.
    """
    # isascii too: int() does not take every digit that there is.
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are taken")
    received, more = 0, True
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            while more:
                message = await receive()
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
    """The JSON value in *data*: UTF-8, or UTF-16 or UTF-32, with a byte-order mark or without.

    Raises `MalformedBody` that says where it is none. NaN and Infinity are no JSON.
    """
    encoding = json.detect_encoding(data)
    try:
        return json.loads(data.decode(encoding), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedBody(
            f"the JSON is not {_name_of(encoding)}: byte {error.start} is 0x{data[error.start]:02x}"
        ) from error
    except RecursionError as error:
        raise MalformedBody("the JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {str(error)[:120]}") from error


def _name_of(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What *work* gives.

    It is cancelled if the client closes the connection meanwhile, and `ClientDisconnect` raised.

    To be used once the body is read: the next that comes by *receive* can only be the client's
    leaving. Nobody looks for it at first: most answers are there sooner than that is worth a task.
    """
    asking = asyncio.current_task()
    assert asking is not None, "runs in a task"
    watch = _Watch(receive, asking)
    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, watch.begin)
    try:
        return await work
    except asyncio.CancelledError:
        # Cancelled from elsewhere too, it is not ours to swallow.
        if watch.left and asking.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Cancels the task *asking* when the client leaves."""

    def __init__(self, receive: Receive, asking: asyncio.Task[Any]) -> None:
        self.left = False
        self._receive = receive
        self._asking = asking
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    def end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self._asking.cancel()
