"""The log: one line for each event, as JSON or as text for people. It never holds image data."""

from __future__ import annotations

import io
import json
import logging
import random
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from starlette.types import Scope

from models.messages import one_line

OUTCOME_SCOPE_KEY = "loupe.outcome"
"""Where the application leaves the route's label and the problem's code, or None."""
BODY_BYTES_SCOPE_KEY = "loupe.body_bytes"
"""Where admission counts the bytes of the body."""
CLIENT_SCOPE_KEY = "loupe.client"
"""Where admission leaves the name of the API key. Absent for a client without a key."""
STARTED_SCOPE_KEY = "loupe.started"
"""When the request's head was complete, on the clock of `time.monotonic`."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

FAILED = 400
"""From this status on, a request is logged whatever the sample."""
REFUSALS = (401, 403, 429, 503)
REFUSALS_PER_S = 20
"""Most lines a second for each status of `REFUSALS`: a flood must not fill a disk."""

request_log = logging.getLogger("loupe.request")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, and what the event has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for *record*, without its end."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _encode(fields)


class TextLines(logging.Formatter):
    """For people: time, level, message, and the event's fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for *record*, without its end. Line breaks of clients and files are escaped."""
        fields: dict[str, object] = getattr(record, "fields", {})
        message = " ".join(
            [record.getMessage(), *(f"{name}={value}" for name, value in fields.items())]
        )
        line = f"{self.formatTime(record)} {record.levelname} {one_line(message)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


LIBRARIES = ("bentoml", "uvicorn", "uvicorn.error", "py.warnings", "asyncio")
"""Loggers that others configure."""


class LogLines(logging.StreamHandler[TextIO]):
    """Writes the log. What cannot be written is counted, and said once there is room again.

    Python's own handler would print a traceback for each line, to where there is no room either.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, after a line about those that were lost."""
        if self._lost:
            lost, self._lost = self._lost, 0
            text = f"{lost} lines of the log could not be written"
            with suppress(OSError):
                # The last line may be there in part.
                self.stream.write("\n")
            level = {"levelno": logging.WARNING, "levelname": "WARNING"}
            super().emit(logging.makeLogRecord({"msg": text, **level}))
            if self._lost:
                self._lost = lost + 1
                return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Count *record* as lost."""
        self._lost += 1


def start_log(*, style: str, stream: int | None = None) -> None:
    """Send all that is logged in this process to *stream*, in the *style* `json` or `text`.

    *stream* is a descriptor; None is standard error. BentoML and uvicorn have handlers of their
    own, which are taken away. BentoML also disables what was made before.
    """
    handler = LogLines(sys.stderr if stream is None else lines_to(stream))
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    logging.captureWarnings(capture=True)
    for name in (None, "loupe", *LIBRARIES):
        log = logging.getLogger(name)
        log.handlers = [handler] if name in (None, "loupe") else []
        log.propagate = name != "loupe"
        log.disabled = False
    logging.getLogger("loupe").setLevel(logging.INFO)
    # Otherwise uvicorn builds a line for each answer that nobody sees.
    logging.getLogger("uvicorn.access").propagate = False


def lines_to(descriptor: int) -> TextIO:
    """A stream of text that writes each line to *descriptor* at once."""
    return io.TextIOWrapper(
        io.FileIO(descriptor, "w", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


def request_id(given: str) -> str:
    """The client's own id of its request, *given*, if that is harmless; otherwise a new one.

    It need not be secret, so it does not need a system call for randomness.
    """
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def started_at(scope: Scope) -> float:
    """When the request began, on the clock of `time.monotonic`; the first call sets it to now."""
    started: float = scope.setdefault(STARTED_SCOPE_KEY, time.monotonic())
    return started


def client_of(scope: Scope) -> str:
    """The name of the client's API key, otherwise its address; empty without either."""
    known: str | None = scope.get(CLIENT_SCOPE_KEY)
    client = scope.get("client")
    return known or (client[0] if client else "")


class _Budget:
    """At most *per_second* lines in each second."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = self._written = self._left_out = 0

    def take(self) -> int | None:
        """How many lines were left out since the last one; None if this one is left out too."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written > self._per_second:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


_REFUSALS = {status: _Budget(REFUSALS_PER_S) for status in REFUSALS}


def log_request(
    scope: Scope, *, sample: float, status: int, request_id: str, sent_bytes: int, started: float
) -> None:
    """Write the line of a request that has ended, if it is in the *sample*.

    It began at *started*, on the clock of `time.monotonic`.
    """
    if status < FAILED and status != 0 and random.random() >= sample:
        return
    budget = _REFUSALS.get(status)
    left_out = 0 if budget is None else budget.take()
    if left_out is None or not request_log.isEnabledFor(logging.INFO):
        return
    seconds = time.monotonic() - started
    route, code = scope.get(OUTCOME_SCOPE_KEY, ("other", None))
    fields = {
        "request_id": request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "code": code,
        "duration_ms": round(seconds * 1000.0, 2),
        "body_bytes": scope.get(BODY_BYTES_SCOPE_KEY, 0),
        "answer_bytes": sent_bytes,
        "client": client_of(scope),
    }
    if left_out:
        fields["left_out"] = left_out
    # Not `info`, which walks the stack to find its caller.
    request_log.handle(
        request_log.makeRecord(
            request_log.name, logging.INFO, "", 0, "request", (), None, extra={"fields": fields}
        )
    )
