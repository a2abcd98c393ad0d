"""How far a job is: a progress bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from service.scoring.output.tally import Tally

LINE_EVERY_S = 30.0


@contextmanager
def progress_shown(
    console: Console, *, resumed_at: int, count: Callable[[threading.Event], int | None]
) -> Iterator[Callable[[Tally], None]]:
    """A function that shows a tally, until the end of the block.

    *resumed_at* images were done before. *count* gives the total; a thread calls it, and sets its
    event at the end.
    """
    columns = ("scoring", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, completed=resumed_at, rate="")
    started_s = said_s = time.monotonic()
    stop = threading.Event()
    counter = threading.Thread(
        target=lambda: bar.update(task, total=count(stop)), daemon=True, name="count"
    )

    def show(tally: Tally) -> None:
        nonlocal said_s
        now = time.monotonic()
        rate = (tally.seen - resumed_at) / max(1e-9, now - started_s)
        text = f"{rate:,.0f} images/s, {tally.failed:,} failed"
        bar.update(task, completed=tally.seen, rate=text)
        if not console.is_terminal and now - said_s >= LINE_EVERY_S:
            said_s, rest = now, ""
            if total := bar.tasks[task].total:
                left_s = (total - tally.seen) / max(rate, 1e-9)
                rest = f" of {total:,.0f}, {timedelta(seconds=round(left_s))} left"
            console.print(f"{tally.seen:,}{rest}; {text}")

    counter.start()
    try:
        with bar:
            yield show
    finally:
        stop.set()
        counter.join()
