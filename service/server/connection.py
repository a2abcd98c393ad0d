"""A client's connection: uvicorn's protocol with bounds, given one whole request at a time.

uvicorn limits neither the size of a request's head nor its time, and stops reading at `Upgrade`.
Here a head is collected and checked (`service.server.framing`) before the parser sees it. The next
request is read when the current one is answered.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import uvloop

from models.errors import LoupeError, MalformedRequest, RequestTimeout, TooBusy
from service.http.routing import PROBES
from service.observe.logs import OUTCOME_SCOPE_KEY, log_request, request_id
from service.observe.metrics import METRICS
from service.problems import problem
from service.server.connection_limit import ConnectionLimit, connection_limit
from service.server.framing import (
    MAX_HEAD_BYTES,
    Chunks,
    body_bytes,
    check_beginning,
    check_request_line,
    without_upgrade,
)
from service.server.patches import STATUS_LINE, HttpToolsProtocol, set_uvicorn_defaults
from service.server.single_write import JoinedWrites

HEAD_TIMEOUT_S = 10.0
"""From connecting, or from the first byte of a later request, to the end of its head."""
UNREAD_BODY_TIMEOUT_S = 10.0
"""For the rest of a body whose request was answered early."""
LINGER_S = 2.0
"""How long a refused client may go on sending. Closed at once, it would get a reset and could lose
the answer."""
STALLED_S = 30.0
"""How long a client may take nothing of its answer."""
REFUSED_LABEL = "connection"
"""Route, in metrics and the log, of what was refused before it became a request."""
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)++")
PROBE_TARGETS = re.compile(
    rb"(?:https?://[^/?]*)?(?:" + b"|".join(path.encode() for path in PROBES) + rb")(?:\?.*)?"
)
"""The targets of probes, as a path or as an address, with or without a query."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol for one client. *limit* counts all of them."""

    def __init__(self, *, limit: ConnectionLimit, **options: Any) -> None:
        super().__init__(**options)
        self._limit = limit
        self._unread = b""
        """Bytes not given to the parser: part of a head, or what follows the current request."""
        self._searched = 0
        """How many of them contain no end of a head."""
        self._body: int | Chunks | None = 0
        """Bytes missing of the current body, or the state of its chunks. None: reading a head."""
        self._since = time.monotonic()
        """When the current head began."""
        self._timer: asyncio.TimerHandle | None = None
        """Ends the wait for a head, for the rest of a body, or for a refused client to leave."""
        self._refused = False
        self._full = False
        """Whether reading is paused, because enough waits for the current answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client connected by *transport*."""
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))
        connected = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
        self._wait_for(HEAD_TIMEOUT_S, self._end_head)
        self._limit.opened(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        self._limit.closed(self.transport)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Read *data*."""
        if not self._refused:
            self._unset_keepalive_if_required()
            # Without a copy in the usual case, where nothing waits.
            self._unread = self._unread + data if self._unread else data
            self._read()

    def on_response_complete(self) -> None:
        """The request is answered: read the next one."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._body or self._unread:
            self._unset_keepalive_if_required()
        if self._body:
            self._wait_for(UNREAD_BODY_TIMEOUT_S, self.transport.close)
            return
        self._limit.idle(self.transport)
        if self._unread:
            self.loop.call_soon(self._read)

    def on_headers_complete(self) -> None:
        """The parser has read a head."""
        version = self.parser.get_http_version()
        check_request_line(self.url, version=version)
        if self.parser.should_upgrade():
            raise MalformedRequest("CONNECT is for proxies; this service is none")
        body = body_bytes(self.headers, version=version)
        if self._limit.crowded and not PROBE_TARGETS.fullmatch(self.url):
            raise TooBusy(
                "too many connections are open; only health checks are answered",
                retry_after_s=1.0,
            )
        super().on_headers_complete()
        self._stop_waiting()
        self._limit.busy(self.transport)
        self._body = Chunks() if body is None else body

    def _answering(self) -> bool:
        """Whether the current request is read and not answered."""
        return not self._body and self.cycle is not None and not self.cycle.response_complete

    def _read(self) -> None:
        """Give the parser what came, up to the end of one request."""
        if self._refused or self.transport.is_closing():
            return
        try:
            more = True
            while more and self._unread and not self._answering():
                more = self._read_body() if self._body else self._read_head()
        except LoupeError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            # What a callback of the parser raised is its context.
            cause = error.__context__
            unreadable = MalformedRequest(f"this is not an HTTP request: {error}")
            self._refuse(cause if isinstance(cause, LoupeError) else unreadable)
        # By the transport, because uvicorn's flow control resumes only what it paused itself.
        was_full, self._full = self._full, self._answering() and len(self._unread) > MAX_HEAD_BYTES
        if self._full:
            self.transport.pause_reading()
        elif was_full:
            self.transport.resume_reading()

    def _read_head(self) -> bool:
        """Give the parser the head at the beginning of what came. False: it is not complete."""
        if not self._searched:
            self._since = time.monotonic()
            # RFC 9112, 2.2: some clients send an empty line after a body.
            if self._unread[:1] == b"\r":
                self._unread = _EMPTY_LINES.sub(b"", self._unread)
        end = self._unread.find(b"\r\n\r\n", max(0, self._searched - 3), MAX_HEAD_BYTES)
        if end < 0:
            if self._unread not in (b"", b"\r"):
                check_beginning(self._unread, searched=self._searched)
                self._searched = len(self._unread)
            if self._timer is None:
                self._wait_for(HEAD_TIMEOUT_S, self._end_head)
            return False
        head, self._unread = self._unread[: end + 4], self._unread[end + 4 :]
        self._searched, self._body = 0, cast("int | Chunks | None", None)
        self.parser.feed_data(without_upgrade(head))
        if self._body is None:
            raise MalformedRequest("the header does not end at its first empty line")
        return True

    def _read_body(self) -> bool:
        """Give the parser what came of the body. True: it is complete."""
        if isinstance(self._body, Chunks):
            chunks, self._unread = self._body.take(self._unread)
            self._body = 0 if self._body.done else self._body
        else:
            chunks, self._unread = self._unread[: self._body], self._unread[self._body :]
            self._body = (self._body or 0) - len(chunks)
        self.parser.feed_data(chunks)
        if not self._body and self.cycle.response_complete:
            # The request was answered early, and the rest of its body has been read.
            self._stop_waiting()
            self._limit.idle(self.transport)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        return not self._body

    def _end_head(self) -> None:
        self._timer = None
        if self._unread and not self.transport.is_closing():
            self._refuse(RequestTimeout(f"the header did not come within {HEAD_TIMEOUT_S:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: LoupeError) -> None:
        """Answer with *error*, unless another answer has begun, and read no more."""
        self._refused = True
        self._unread = b""
        self._unset_keepalive_if_required()
        started = False
        if self.cycle is not None and (self._body or not self.cycle.response_complete):
            started = self.cycle.response_started
            # Tell the route that its client left, so that it writes nothing.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not started:
            self._write_refusal(error)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._limit.idle(self.transport)
        self._wait_for(LINGER_S, self.transport.close)

    def _write_refusal(self, error: LoupeError) -> None:
        name = request_id("")
        response = problem(error, request_id=name)
        response.headers.update({"x-request-id": name, "connection": "close"})
        fields = [b"%b: %b\r\n" % field for field in response.raw_headers]
        self.transport.write(
            b"".join((STATUS_LINE[error.status], *fields, b"\r\n", bytes(response.body)))
        )
        METRICS.responded(
            REFUSED_LABEL, error.status, time.monotonic() - self._since, problem_code=error.code
        )
        outcome = (REFUSED_LABEL, error.code)
        log_request(
            {"method": "", "client": self.client, OUTCOME_SCOPE_KEY: outcome},
            sample=1.0,
            status=error.status,
            request_id=name,
            sent_bytes=len(response.body),
            started=self._since,
        )

    def _wait_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Loop(uvloop.Loop):
    """uvloop's loop, with a shorter bound for TLS handshakes. uvloop's own is 60 s."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """As in asyncio."""
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEAD_TIMEOUT_S
        return await super().create_server(*args, **options)


def loop_factory(*, use_subprocess: bool) -> type[Loop]:
    """What uvicorn calls to learn how to make a loop."""
    return Loop


def bound_connections() -> None:
    """Have the servers that uvicorn starts from now on use `Connection`, on a `Loop`."""
    set_uvicorn_defaults(
        protocol=partial(Connection, limit=connection_limit()),
        loop_factory=f"{__name__}:{loop_factory.__name__}",
    )
