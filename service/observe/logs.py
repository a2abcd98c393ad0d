"""The log: one handler, one line for each event, as JSON or for people.

Nothing of an image is ever in it.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import time
from functools import lru_cache
from typing import TextIO

from starlette.types import Scope

from models.messages import one_line

OUTCOME_SCOPE_KEY = "loupe.outcome"
"""Where the handling of a request leaves its route's label and its problem's code, or None, for its line in the log."""
BODY_BYTES_SCOPE_KEY = "loupe.body_bytes"
"""Where admission counts the bytes of the body that came."""
CLIENT_SCOPE_KEY = "loupe.client"
"""Where admission leaves who asks: the name of an API key. Absent for a client without one."""

STARTED_SCOPE_KEY = "loupe.started"
"""When the request's head was there, on the clock of `time.monotonic`."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

FAILED = 400
"""Statuses from here on are logged whatever the sample."""
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
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _encode(fields)


class TextLines(logging.Formatter):
    """For people: time, level, message, and the event's fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line for *record*, without its end."""
        fields: dict[str, object] = getattr(record, "fields", {})
        return " ".join(
            [
                super().format(record),
                *(f"{name}={one_line(str(value))}" for name, value in fields.items()),
            ]
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without its fields; whatever a client or a file name brought stays inside it."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def start_log(*, style: str, stream: TextIO = sys.stderr) -> None:
    """Send what `loupe` and all below it log to *stream*, in the *style* `json` or `text`.

    A handler of our own: BentoML configures the root logger to drop what is below a warning.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    log = logging.getLogger("loupe")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    # Whose lines nobody sees: while a handler of the root could be theirs, uvicorn puts one
    # together for each answer.
    logging.getLogger("uvicorn.access").propagate = False


def request_id(given: str) -> str:
    """What the client calls its request, *given*, if that is harmless; otherwise a new name.

    It need not be secret, and the system's randomness is a call.
    """
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def started_at(scope: Scope) -> float:
    """When the request began, on the clock of `time.monotonic`: now, for whoever asks first."""
    started: float = scope.setdefault(STARTED_SCOPE_KEY, time.monotonic())
    return started


def client_of(scope: Scope) -> str:
    """Who asks: the name of its API key, otherwise its address; empty if it has neither."""
    known: str | None = scope.get(CLIENT_SCOPE_KEY)
    client = scope.get("client")
    return known or (client[0] if client else "")


class _Budget:
    """At most *per_second* lines in each second."""

    def __init__(self, per_second: int) -> None:
        self.left_out = 0
        """Lines that were not written, and are not told of yet."""
        self._per_second = per_second
        self._second = 0
        self._written = 0

    def take(self) -> bool:
        """Whether one more line may be written now."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written > self._per_second:
            self.left_out += 1
            return False
        return True

    def told(self) -> int:
        """How many were left out since it was last told."""
        count, self.left_out = self.left_out, 0
        return count


_REFUSALS = {status: _Budget(REFUSALS_PER_S) for status in REFUSALS}


def log_request(
    scope: Scope, *, sample: float, status: int, request_id: str, sent_bytes: int, started: float
) -> None:
    """Write the line of a request that began at *started*, on the clock of `time.monotonic`, and is
    over: unless it is not in the *sample*.
    """
    if status < FAILED and status != 0 and random.random() >= sample:
        return
    budget = _REFUSALS.get(status)
    if not request_log.isEnabledFor(logging.INFO) or (budget is not None and not budget.take()):
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
    if budget is not None and budget.left_out:
        fields["left_out"] = budget.told()
    # Not `info`, which walks the stack to find out from where it is called, for nobody.
    request_log.handle(
        request_log.makeRecord(
            request_log.name, logging.INFO, "", 0, "request", (), None, extra={"fields": fields}
        )
    )


def _utc(seconds: float) -> str:
    return f"{_utc_second(int(seconds))}.{int(seconds % 1.0 * 1000):03d}Z"


@lru_cache(maxsize=2)
def _utc_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
