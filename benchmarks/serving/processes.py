"""Memory and CPU time of a contender's processes by /proc; pausing and ending them."""

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
    """The memory of one process at one moment."""

    rss_mib: float
    """Resident memory, with pages shared with other processes."""
    pss_mib: float
    """Resident memory, with each shared page divided by the number of its users."""
    private_mib: float
    """Resident memory that no other process shares."""
    files: int
    threads: int

    def as_dict(self) -> dict[str, float]:
        """By name, for JSON."""
        return asdict(self)


def held(process: psutil.Process) -> Held:
    """The memory of *process* now."""
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
    """CPU seconds that *processes* have used; ended ones count 0."""
    spent = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def pause(pid: int) -> None:
    """Stop the processes of *pid* (SIGSTOP), so that they use no CPU during another measurement."""
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
    """Within, the processes of *pid* run; afterwards they are paused."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.resume()
    try:
        yield
    finally:
        pause(pid)


def end(pid: int) -> None:
    """Send SIGTERM to *pid*, and SIGKILL to the rest of its processes after a while."""
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
