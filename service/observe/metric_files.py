"""The files in which each worker keeps its metrics, and the sum over all workers.

prometheus_client names such files after the process, so that workers that die and are started
again would leave files without end. Here a worker takes the lowest free slot and continues with the
files of the slot. Its counters continue, so that a total never falls, and its gauges start again.

prometheus_client maps files with holes into memory. On a full disk, writing to a hole ends the
process by SIGBUS. Here every byte is allocated before it is mapped; without room, values stay in
the worker's own memory.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.core import REGISTRY, Metric
from prometheus_client.multiprocess import MultiProcessCollector

FIRST_BYTES = 1 << 18
MOST_BYTES = 1 << 24
"""Of one file. A series takes about 150 bytes."""
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
"""What a worker has a file for: the kinds of `service.observe.metrics`."""

log = logging.getLogger("loupe")
_in_memory: list[str] = []
"""Why this worker's metrics are in its memory, if they are."""


class AllocatedFile(values.MmapedDict):  # type: ignore[misc, name-defined]  # as its module sees it
    """A file of metrics that has no holes. Raises `OSError` where there is no room for a series."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            allocate(filename, FIRST_BYTES)
        super().__init__(filename, read_mode)

    def _init_value(self, key: str) -> None:
        """Add the series *key*. The file is doubled first if the series needs more room."""
        if self._used + len(key.encode()) + 40 > self._capacity:
            if self._capacity >= MOST_BYTES:
                raise OSError(f"{MOST_BYTES} bytes are full")
            allocate(self._f.name, 2 * self._capacity)
        super()._init_value(key)


def claim_slot(folder: Path) -> None:
    """Let this process write its metrics into the lowest slot of *folder* that no process holds.

    To be called before the first metric is made. The kernel frees the slot when the process ends.
    Tried with prometheus_client 0.26: `MultiProcessValue` takes a function for the name, and looks
    up `MmapedDict` and `ValueClass` in its module.
    """
    try:
        slot = next(number for number in itertools.count() if _locked(folder, number) is not None)
        for path in folder.glob(f"gauge_*_{slot}.db"):
            path.unlink()
        for kind in KINDS:
            allocate(folder / f"{kind}_{slot}.db", FIRST_BYTES)
    except OSError as error:
        values.ValueClass = values.MutexValue
        _keep_in_memory(error)
        return
    values.MmapedDict = AllocatedFile  # type: ignore[attr-defined]
    in_file = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]

    def value(*about: Any, **options: Any) -> object:
        try:
            return in_file(*about, **options)
        except OSError as error:
            _keep_in_memory(error)
            return values.MutexValue(*about, **options)  # type: ignore[no-untyped-call]

    value._multiprocess = True  # type: ignore[attr-defined]  # noqa: SLF001 - as its own classes have
    values.ValueClass = value


def allocate(path: str | Path, size: int) -> None:
    """Give the file at *path* at least *size* bytes. Raises `OSError` if there is no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if (had := os.fstat(descriptor).st_size) < size:
            try:
                _reserve(descriptor, had, size)
            except OSError:
                os.ftruncate(descriptor, had)
                raise
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, had: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.pwrite(descriptor, bytes(size - had), had)


def _keep_in_memory(error: OSError) -> None:
    """Say once that metrics are not shared."""
    if not _in_memory:
        _in_memory.append(str(error))
        log.warning(
            "there is no room for this worker's metrics (%s); new ones stay in its memory, and"
            " /metrics does not add them up. Make room in TMPDIR and start the server again",
            error,
        )


def samples_of_every_worker(folder: Path) -> Iterable[Metric]:
    """What the workers counted that keep their files in *folder*, dead ones included.

    If this worker found no room there, what it counted itself.
    """
    if _in_memory and values.ValueClass is values.MutexValue:
        return list(REGISTRY.collect())
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
