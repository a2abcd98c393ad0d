"""Runs one batch of tickets. A bad image fails alone, and the others get their answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.errors import RequestError
from service.engine.tickets import PIXELS, Done, Outputs, Run, Ticket

if TYPE_CHECKING:
    from service.observe.metrics import PoolMetrics


def run_batch(
    run: Run, batch: Sequence[Ticket], metrics: PoolMetrics
) -> Iterator[tuple[Ticket, Done | Exception]]:
    """The outcome of each ticket of *batch*.

    If the batch fails, its images are run one by one, so that only the bad one fails.
    """
    started = time.monotonic()
    names = tuple(
        dict.fromkeys(name for ticket in batch for name in ticket.outputs if name != PIXELS)
    )
    try:
        values = run(np.stack([ticket.payload for ticket in batch]), names)
        _require_rows(values, count=len(batch))
    except Exception as error:  # noqa: BLE001 - it belongs to the callers of the batch
        if len(batch) == 1:
            yield batch[0], as_outcome(error)
            return
    else:
        ended = time.monotonic()
        metrics.batch_done(len(batch), ended - started)
        for row, ticket in enumerate(batch):
            yield ticket, ticket.done(values, row, began=started, ended=ended, batch=len(batch))
        return
    for ticket in batch:
        if ticket.is_awaited:
            yield from run_batch(run, [ticket], metrics)


def _require_rows(values: Outputs, *, count: int) -> None:
    """Raise unless each output has *count* rows: else images would get the answers of others."""
    for name, rows in values.items():
        if len(rows) != count:
            raise AssertionError(f"output {name} has {len(rows)} rows for {count} images")


def as_outcome(error: Exception) -> Exception:
    """*error* as a future accepts it: a coroutine would take `StopIteration` for its own end.

    An error of the image loses its traceback: nobody reads it, and its frames hold the photo.
    """
    if isinstance(error, StopIteration):
        return RuntimeError(f"it raised {error!r}")
    part: BaseException | None = error if isinstance(error, RequestError) else None
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error
