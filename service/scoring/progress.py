"""How far a job is, for a person: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.scoring.output.tally import Tally

LINE_EVERY_S = 30.0


class Display:
    """Says how far a job is.

    *done* images were there before it began; *count* tells the total, later, from another thread.
    """

    def __init__(
        self, console: Console, *, done: int, count: Callable[[threading.Event], int | None]
    ) -> None:
        self._console = console
        self._before = done
        self._started_s = self._said_s = time.monotonic()
        self._total: int | None = None
        columns = (
            TextColumn("scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=None, completed=done, rate="")
        self._stop = threading.Event()
        self._counter = threading.Thread(
            target=self._learn_total, args=(count,), daemon=True, name="count"
        )

    def update(self, tally: Tally) -> None:
        """Show what *tally* says."""
        now = time.monotonic()
        rate = (tally.seen - self._before) / max(1e-9, now - self._started_s)
        text = f"{rate:,.0f} images/s, {tally.failed:,} failed"
        self._bar.update(self._task, completed=tally.seen, total=self._total, rate=text)
        if not self._console.is_terminal and now - self._said_s >= LINE_EVERY_S:
            self._said_s = now
            left = (
                ""
                if self._total is None
                else (
                    f" of {self._total:,},"
                    f" {_duration((self._total - tally.seen) / max(rate, 1e-9))} left"
                )
            )
            self._console.print(f"{tally.seen:,}{left}; {text}")

    def _learn_total(self, count: Callable[[threading.Event], int | None]) -> None:
        self._total = count(self._stop)

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """The display, until the end of the block."""
        self._counter.start()
        try:
            with self._bar:
                yield self
        finally:
            self._stop.set()
            self._counter.join()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
