"""Progress bars with throughput and time left, and the console that messages are printed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from models.messages import one_line

CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
T = TypeVar("T")


def steps(
    iterable: Iterable[T], *, total: int, title: str, images: int = 0, rounds_left: int = 0
) -> Iterator[T]:
    """The items of *iterable*, each of so many *images*, with a progress bar on a terminal.

    The time left is that of this bar and of *rounds_left* more like it. The bar disappears when it
    is full. Without a terminal there is none.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(
        *columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal
    ) as progress:
        task = progress.add_task(title, total=total, rate="", left="")
        for done, item in enumerate(iterable, 1):
            yield item
            speed = progress.tasks[0].speed
            left = _left(speed, total - done + rounds_left * total)
            progress.update(task, advance=1, rate=_rate(speed, images), left=left)


def _rate(steps_per_s: float | None, images: int) -> str:
    if not steps_per_s:
        return ""
    return f"{steps_per_s * images:.0f} images/s" if images else f"{steps_per_s:.1f} steps/s"


def _left(steps_per_s: float | None, steps_left: int) -> str:
    return f"{short_time(steps_left / steps_per_s)} left" if steps_per_s else ""


def shown(text: str) -> str:
    """Foreign *text*, such as a file name, for `CONSOLE`: on one line, and without markup."""
    return escape(one_line(text))


def short_time(seconds: float) -> str:
    """Such as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 90.0 * 60.0 else f"{seconds / 3600.0:.1f} h"
