"""A client's connection: uvicorn's protocol, which gets one whole request at a time, within bounds.

uvicorn bounds neither the head of a request nor its time, and stops reading at `Upgrade`. Here a
head is gathered and checked (`service.server.framing`) before the parser sees it, and the next
request is looked at when the last one is answered.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import uvicorn.config
import uvloop
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from models.errors import LoupeError, MalformedRequest, RequestTimeout, TooBusy
from service.http.routing import PROBES
from service.observe.logs import OUTCOME_SCOPE_KEY, log_request, request_id
from service.observe.metrics import METRICS
from service.problems import PROBLEM_TYPE, problem_bytes, problem_headers
from service.server.connection_limit import ConnectionLimit, connection_limit
from service.server.framing import (
    MAX_HEAD_BYTES,
    Chunks,
    body_bytes,
    check_beginning,
    check_request_line,
    without_upgrade,
)
from service.server.single_write import InPairs

HEAD_TIMEOUT_S = 10.0
"""From connecting, or from the first byte of a later request, to the end of its head."""
UNREAD_BODY_TIMEOUT_S = 10.0
"""For the rest of a body that was answered before it was all there."""
LINGER_S = 2.0
"""How long a refused client may go on sending. Closed at once, it would get a reset and could lose the answer."""
STALLED_S = 30.0
"""How long a client may take nothing of its answer."""
REFUSED_LABEL = "connection"
"""Names, in metrics and log, the route of what was refused before it was a request."""
CHOSEN_BY_DEFAULT = "auto"
"""The name under which uvicorn looks for protocol and loop where nobody names one, as BentoML does not."""
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)++")
OPEN_TO_A_CROWD = re.compile(
    rb"(?:https?://[^/?]*)?(?:" + b"|".join(path.encode() for path in PROBES) + rb")(?:\?.*)?"
)
"""The targets of probes, as a path or as an address, with or without a query."""


class Flow(FlowControl):
    """uvicorn's flow control, which reads no more while enough waits.

    Otherwise uvicorn would read on with each request.
    """

    full = False

    def resume_reading(self) -> None:
        """Read again, if there is room."""
        if not self.full:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, for one client among those that *limit* counts."""

    def __init__(self, *, limit: ConnectionLimit, **options: Any) -> None:
        super().__init__(**options)
        self._limit = limit
        self._unread = bytearray()
        """What came and is not taken yet: the beginning of a head, or what came while the last request was answered."""
        self._searched = 0
        """So many of its bytes do not end a head."""
        self._body: int | Chunks = 0
        """Bytes of the current body that have not come, or how its chunks go on."""
        self._since = time.monotonic()
        """When the head under way began."""
        self._timer: asyncio.TimerHandle | None = None
        """Ends what the client keeps us waiting for: a head, the rest of a body, its going."""
        self._stalled: asyncio.TimerHandle | None = None
        self._refused = False
        self._in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client connected by *transport*."""
        super().connection_made(cast("asyncio.Transport", InPairs(transport, self.loop)))
        self.flow: Flow = Flow(self.transport)
        if self._limit.opened(self):
            self._wait_for(HEAD_TIMEOUT_S, self._head_is_late)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._limit.closed(self)
        self._wait_no_more()
        self._stop_stalled()

    def data_received(self, data: bytes) -> None:
        """*data* came."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if self._answers_last():
            self._keep_for_later(data)
        elif self._unread:
            self._unread += data
            self._take_unread()
        else:
            self._take(data)

    def evict(self) -> None:
        """Close this connection, which waits, because others need its place."""
        self.transport.abort()

    def on_response_complete(self) -> None:
        """The request is answered: go on with the next one."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._body:
            self._unset_keepalive_if_required()
            self._wait_for(UNREAD_BODY_TIMEOUT_S, self.transport.close)
            return
        self._limit.waits(self)
        if self._unread:
            self._unset_keepalive_if_required()
            self.loop.call_soon(self._take_unread)

    def pause_writing(self) -> None:
        """The client takes nothing of its answer."""
        super().pause_writing()
        self._stop_stalled()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It takes it again."""
        super().resume_writing()
        self._stop_stalled()

    def _answers_last(self) -> bool:
        """The last request came whole and is being answered."""
        return not self._body and self.cycle is not None and not self.cycle.response_complete

    def _keep_for_later(self, data: bytes | bytearray | memoryview) -> None:
        """Keep *data* until the last request is answered, and let the client wait if it is much."""
        self._unread += data
        if len(self._unread) > MAX_HEAD_BYTES:
            self.flow.full = True
            self.flow.pause_reading()

    def _take_unread(self) -> None:
        if self._unread and not self._refused and not self.transport.is_closing():
            unread, self._unread = self._unread, bytearray()
            self.flow.full = False
            self._take(unread)
            self.flow.resume_reading()

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        """Read *data*, up to the end of the next request at most: what is behind it waits for its
        answer.
        """
        try:
            while data:
                if self._body:
                    data = self._take_body(data)
                elif self._answers_last():
                    self._keep_for_later(data)
                    return
                else:
                    data = self._take_head(bytes(data) if isinstance(data, memoryview) else data)
        except LoupeError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, LoupeError)
                else MalformedRequest(f"this is no HTTP request: {error}")
            )

    def _take_head(self, data: bytes | bytearray) -> bytes | memoryview:
        """Give the parser the head that *data* begins with, or keep the beginning of one.

        The bytes behind it.
        """
        if not self._searched:
            self._since = time.monotonic()
            # RFC 9112, 2.2: some clients send an empty line behind a body.
            data = _EMPTY_LINES.sub(b"", data) if data[:1] == b"\r" else data
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3), MAX_HEAD_BYTES)
        if end < 0:
            self._keep_beginning(data)
            return b""
        head = without_upgrade(bytes(data[: end + 4]))
        self._searched = 0
        self._in_head = True
        self.parser.feed_data(head)
        if self._in_head:
            raise MalformedRequest("the header does not end at its first empty line")
        return memoryview(data)[end + 4 :] if isinstance(data, bytes) else bytes(data[end + 4 :])

    def on_headers_complete(self) -> None:
        """The parser has read a head."""
        version = self.parser.get_http_version()
        check_request_line(self.url, version=version)
        if self.parser.should_upgrade():
            raise MalformedRequest("CONNECT is for proxies; this is none")
        body = body_bytes(self.headers, version=version)
        if self._limit.crowded and not OPEN_TO_A_CROWD.fullmatch(self.url):
            raise TooBusy(
                "as many connections are open as may be; only probes are answered on this one",
                retry_after_s=1.0,
            )
        super().on_headers_complete()
        self._wait_no_more()
        self._limit.busy(self)
        self._in_head = False
        self._body = Chunks() if body is None else body

    def _keep_beginning(self, data: bytes | bytearray) -> None:
        """Keep the beginning of a head until more comes."""
        self._unread = data if isinstance(data, bytearray) else bytearray(data)
        if data not in (b"", b"\r"):
            check_beginning(self._unread, searched=self._searched)
            self._searched = len(data)
        if self._timer is None:
            self._wait_for(HEAD_TIMEOUT_S, self._head_is_late)

    def _take_body(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Give the parser the part of *data* that is of the body. The bytes behind it."""
        rest: bytes | bytearray | memoryview
        if isinstance(self._body, Chunks):
            chunks, rest = self._body.take(bytes(data))
            self.parser.feed_data(chunks)
            self._body = 0 if self._body.done else self._body
        else:
            part, rest = data[: self._body], data[self._body :]
            self.parser.feed_data(part)
            self._body -= len(part)
        if not self._body and self.cycle.response_complete:
            # It was answered before, and now its body is out of the way.
            self._wait_no_more()
            self._limit.waits(self)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        return rest

    def _head_is_late(self) -> None:
        self._timer = None
        if self._unread and not self.transport.is_closing():
            self._refuse(RequestTimeout(f"the header did not come within {HEAD_TIMEOUT_S:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: LoupeError) -> None:
        """Answer with *error*, if an answer can still be told from others, and read no more."""
        self._refused = True
        self._unread.clear()
        self._unset_keepalive_if_required()
        self._wait_no_more()
        answering = self.cycle is not None and (
            not self.cycle.response_complete or bool(self._body)
        )
        started = answering and self.cycle.response_started
        if answering:
            # The route hears that its client left, and writes nothing.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not started:
            self._write_refusal(error)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._limit.waits(self)
        self._wait_for(LINGER_S, self.transport.close)

    def _write_refusal(self, error: LoupeError) -> None:
        name = request_id("")
        body = problem_bytes(error, request_id=name)
        fields = {
            "content-type": PROBLEM_TYPE,
            "content-length": str(len(body)),
            "x-request-id": name,
            "connection": "close",
        }
        lines = [
            f"{key}: {value}\r\n".encode("latin-1")
            for key, value in (fields | problem_headers(error)).items()
        ]
        self.transport.write(b"".join((STATUS_LINE[error.status], *lines, b"\r\n", body)))
        seconds = time.monotonic() - self._since
        METRICS.responded(REFUSED_LABEL, error.status, seconds, problem_code=error.code)
        scope = {
            "method": "",
            "client": self.client,
            OUTCOME_SCOPE_KEY: (REFUSED_LABEL, error.code),
        }
        log_request(
            scope,
            sample=1.0,
            status=error.status,
            request_id=name,
            sent_bytes=len(body),
            started=self._since,
        )

    def _wait_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._wait_no_more()
        self._timer = self.loop.call_later(seconds, then)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class Loop(uvloop.Loop):
    """uvloop's loop, whose servers give a TLS handshake no more time than a head. uvloop's own
    bound is 60 s.
    """

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """As in asyncio."""
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEAD_TIMEOUT_S
        return await super().create_server(*args, **options)


def loop_factory(*, use_subprocess: bool) -> type[Loop]:
    """What uvicorn calls to hear how a loop is made."""
    return Loop


def bound_connections() -> None:
    """Have the servers that uvicorn starts from now on take `Connection`, on a `Loop`.

    BentoML gives no way to choose either, and uvicorn has a table of each.
    """
    protocol: Any = partial(Connection, limit=connection_limit())
    uvicorn.config.HTTP_PROTOCOLS[CHOSEN_BY_DEFAULT] = protocol
    uvicorn.config.LOOP_FACTORIES[CHOSEN_BY_DEFAULT] = f"{__name__}:{loop_factory.__name__}"
