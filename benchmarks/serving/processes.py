"""Processes of a contender: what they hold and spend by /proc, stopped while another is measured,
never left behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

STOP_PATIENCE_S = 20.0
PAUSE_PATIENCE_S = 5.0
MIB = 1024.0
"""Kibibytes, the unit of /proc, in a mebibyte."""


@dataclass(frozen=True)
class Held:
    """What one process holds at a moment."""

    rss_mib: float
    """Resident memory, pages shared with other processes among it."""
    pss_mib: float
    """Resident memory, each shared page divided by those who share it."""
    private_mib: float
    """Resident memory that nobody else has."""
    files: int
    threads: int

    def as_dict(self) -> dict[str, float]:
        """By name, for JSON."""
        return asdict(self)


def held(process: psutil.Process) -> Held:
    """What *process* holds now."""
    rollup = _kibibytes(Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii"))
    private = rollup["Private_Clean"] + rollup["Private_Dirty"]
    return Held(
        rollup["Rss"] / MIB,
        rollup["Pss"] / MIB,
        private / MIB,
        process.num_fds(),
        process.num_threads(),
    )


def _kibibytes(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) for words in lines}


def family(pid: int) -> list[psutil.Process]:
    """The process *pid* and all below it; empty if it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds that *processes* have spent so far; those that are gone count nothing."""
    spent = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def pause(pid: int) -> None:
    """Stop the family of *pid* where it stands, so that it takes nothing from whoever is measured."""
    processes = family(pid)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    # The signal takes effect when the process is next scheduled.
    ends_s = time.monotonic() + PAUSE_PATIENCE_S
    while any(_runs(process) for process in processes):
        if time.monotonic() > ends_s:
            raise TimeoutError(
                f"processes below {pid} did not stop within {PAUSE_PATIENCE_S:g} s of SIGSTOP"
            )
        time.sleep(0.001)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def awake(pid: int) -> Iterator[None]:
    """The family of *pid* runs within, and is paused after."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.resume()
    try:
        yield
    finally:
        pause(pid)


def end(pid: int) -> None:
    """SIGTERM to *pid*, and after a while SIGKILL to what is left of its family."""
    processes = family(pid)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    if processes:
        with suppress(psutil.NoSuchProcess):
            processes[0].terminate()
    _, left = psutil.wait_procs(processes, timeout=STOP_PATIENCE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_PATIENCE_S)
