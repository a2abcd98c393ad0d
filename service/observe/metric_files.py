"""The files in which each worker keeps its metrics, and the sum over all workers.

prometheus_client names such files after the process, so that workers that die and are started
again would leave files without end. Here a worker takes the lowest free slot and continues with the
files of the slot. Its counters continue, so that a total never falls, and its gauges start again.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector


def claim_slot(folder: Path) -> None:
    """Let this process write its metrics into the lowest slot of *folder* that no process holds.

    To be called before the first metric is made. The kernel frees the slot when the process ends.
    Tried with prometheus_client 0.26, whose `MultiProcessValue` takes a function for the name.
    """
    slot = next(number for number in itertools.count() if _locked(folder, number) is not None)
    for path in folder.glob(f"gauge_*_{slot}.db"):
        path.unlink()
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def samples_of_every_worker(folder: Path) -> Iterable[Metric]:
    """What the workers counted that keep their files in *folder*, dead ones included."""
    files = [str(path) for path in folder.glob("*.db") if _counts(path)]
    return list(MultiProcessCollector.merge(files, accumulate=True))  # type: ignore[no-untyped-call]


def _counts(path: Path) -> bool:
    """False for an empty file, which was only just made, and for the gauges of a dead worker."""
    kind, _, slot = path.stem.rpartition("_")
    if kind.startswith("gauge") and (descriptor := _locked(path.parent, int(slot))) is not None:
        os.close(descriptor)
        return False
    return path.stat().st_size > 0


def _locked(folder: Path, slot: int) -> int | None:
    """The descriptor that holds *slot*; None if another one holds it."""
    descriptor = os.open(folder / f"{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
