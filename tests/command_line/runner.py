"""Runs command lines in a child that lives on, so that thousands of them cost no start-up, and one
that hangs is ended.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from models.messages import ADVICE

CHECKOUT = Path(__file__).parents[2]
LIMIT_S = 25.0
"""A command that needs longer hangs. The first one of its kind imports torch."""


NAMELESS = tuple(
    f"error: {text}"
    for text in ("text in a file", "a table cannot", "not enough memory", *ADVICE.values())
)
"""How a message begins that could not name what it is about."""


@dataclass(frozen=True)
class Case:
    """A command line, and where it is run."""

    arguments: tuple[str, ...]
    folder: Path
    bad: str = ""
    """The value under test, as it stands in *arguments*."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """How a case ended. A status of None: it did not, within the limit."""

    status: int | None
    out: str
    err: str


class Runner:
    """The child. File modes hold for it even where the tests are run by root."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._child: subprocess.Popen[str] | None = None
        self._reports: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, case: Case, *, limit_s: float = LIMIT_S) -> Done:
        """The end of *case*."""
        if self._child is None:
            self._begin()
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._reports is not None
        order = {
            "arguments": case.arguments,
            "folder": str(case.folder),
            "environment": dict(case.environment),
        }
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._reports], [], [], limit_s)
        report = self._reports.readline() if ready else ""
        status = json.loads(report)["status"] if report else None
        out, err = (
            (self._place / name).read_bytes().decode("utf-8", "backslashreplace")
            for name in ("out", "err")
        )
        if status is None:
            self._end()
        return Done(status, out, err)

    def _begin(self) -> None:
        ours, theirs = os.pipe()
        command = [
            *privileges_dropped(),
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.command_line.child",
            str(theirs),
        ]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")
        }
        with (self._place / "out").open("ab") as out, (self._place / "err").open("ab") as err:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                pass_fds=[theirs],
                cwd=CHECKOUT,
                start_new_session=True,
                text=True,
                env=environment
                | {
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(CHECKOUT),
                },
            )
        os.close(theirs)
        self._reports = os.fdopen(ours, encoding="ascii")

    def _end(self) -> None:
        if self._child is None:
            return
        assert self._child.stdin is not None
        assert self._reports is not None
        # With all that the command started.
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._child.stdin.close()
        self._reports.close()
        self._child = None


def privileges_dropped() -> list[str]:
    """The beginning of a command that root runs without its privilege to read and write everything;
    nothing for other users.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


def complaint(case: Case, done: Done, *, judged: Sequence[int] = (0,)) -> str | None:
    """What is wrong with the way *case* ended; None if nothing is.

    Statuses in *judged* may come without an error line.
    """
    told = done.out + done.err
    if done.status is None:
        return "it hangs, or its process died"
    if "Traceback" in told or "a fault in Loupe itself" in told:
        return "a traceback or a fault"
    if done.status not in (0, 1, 2, 3, 4, 141):
        return f"exit status {done.status}"
    raw = sorted(set(re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", told)))
    if raw:
        return f"control characters in what it prints: {raw}"
    lines = [_as_error(line) for line in done.err.splitlines()]
    errors = [line for line in lines if line.startswith("error: ")]
    if done.status not in judged and (len(errors) != 1 or lines[-1] != errors[0]):
        return "not one error line, the last of stderr"
    if any(line.startswith(NAMELESS) for line in errors):
        return "no file is named"
    return None


def _as_error(line: str) -> str:
    """*line*, or what it says if it is an error in the log of a server, which is JSON."""
    if not line.startswith('{"time"'):
        return line
    entry = json.loads(line)
    return f"{entry['level']}: {entry['message']}"


def described(what: str, case: Case, done: Done, wrong: str) -> str:
    """*wrong* with what a person needs to see it."""
    shown = " ".join(ascii(word)[:120] for word in case.arguments)
    return (
        f"--- {what}\n    {wrong}; status {done.status}\n    loupe {shown}\n    {done.err[-600:]!a}"
    )
