"""The files of the workers' metrics: added up, and put away once their worker is dead.

prometheus_client gives each process a file for each type of metric. Workers that die and are
started again would leave files behind without end. The counts of a dead worker must stay, because
a total never falls: they are added to one file for all dead workers. Its gauges, which say how
things are now, go.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from models.atomic_files import locked

LOCK_FILE = "metrics.lock"
DEAD = "0"
"""In the place of a process id: the file of all dead workers. No process of ours has it."""
MERGED, MERGING = ".merged", ".merging"
"""The sum that is to replace the file of the dead, and the file that went into it, until it has."""


def samples_of_every_worker(folder: Path) -> Iterable[Metric]:
    """What the workers counted that keep their files in *folder*, dead ones included."""
    with locked(folder / LOCK_FILE):
        _put_away_dead(folder)
        # An empty file is of a worker that has just begun to make it.
        files = [str(path) for path in folder.glob("*.db") if path.stat().st_size]
        return list(MultiProcessCollector.merge(files, accumulate=True))  # type: ignore[no-untyped-call]


def put_away_dead_workers(folder: Path) -> None:
    """Leave no file in *folder* that belongs to one dead worker.

    For a worker that starts: perhaps nobody ever scrapes. Where another worker is at it, that one
    does it, so that nobody who starts waits for a colleague that hangs.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _put_away_dead(folder)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _put_away_dead(folder: Path) -> None:
    _finish_merges(folder)
    alive: dict[str, bool] = {DEAD: True}
    for path in sorted(folder.glob("*.db")):
        kind, _, process = path.stem.rpartition("_")
        if process not in alive:
            alive[process] = _lives(int(process))
        if not alive[process]:
            _put_away(path, kind)


def _put_away(path: Path, kind: str) -> None:
    """Add the counts in *path* to the file of the dead of its *kind*, and remove it.

    Killed at any point, the next call finds out how far this one came: nothing is lost, and nothing
    counts twice.
    """
    if kind.startswith("gauge") or not path.stat().st_size:
        path.unlink()
        return
    total = path.with_name(f"{kind}_{DEAD}.db")
    merged = total.with_suffix(MERGED)
    # Here, because it imports BentoML, which only a server with workers has.
    from service.server.patches import write_metric_sums

    write_metric_sums(merged, [one for one in (total, path) if one.exists()])
    path.rename(path.with_suffix(MERGING))
    _finish_merges(path.parent)


def _finish_merges(folder: Path) -> None:
    begun = list(folder.glob(f"*{MERGING}"))
    for merged in folder.glob(f"*{MERGED}"):
        if begun:
            merged.replace(merged.with_suffix(".db"))
        else:
            # Perhaps half written; its parts are all there.
            merged.unlink()
    for path in begun:
        path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        # The latter: the number was given to a process of somebody else's.
        return False
    return True
