"""The machine during a measurement: its longest pause, CPU time of its host, pages read from disk.

    python -m benchmarks.serving.pauses

If a host stops its virtual machine for half a second, a service seems to stall. For each line on
standard input, the process prints a line of JSON about the time since the last line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_S = 0.005
"""Time between two looks at the clock; a longer time is a pause."""
AHEAD_OF_ALL = 1
"""Real-time priority, so that no other process causes a pause. Source: sched(7)."""


@contextmanager
def pauses() -> Iterator[Callable[[], dict[str, float]]]:
    """A function that describes the machine since its last call.

    It gives `longest_pause_ms`, `real_time` (whether no other process can cause a pause),
    `stolen_s` of CPU, and `major_faults`.
    """
    # Closes its pipes and waits: at the end of its input the process ends.
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def since_last() -> dict[str, float]:
            ask.write("\n")
            ask.flush()
            found: dict[str, float] = json.loads(answer.readline())
            return found

        since_last()  # it has started, and counts from here
        yield since_last


def main() -> None:
    """Look at the clock until the input ends."""
    ahead = _get_ahead()
    longest_s, counted = 0.0, _counters()
    while True:
        begun_s = time.monotonic()
        asked, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        longest_s = max(longest_s, time.monotonic() - begun_s - LOOK_S)
        if not asked:
            continue
        if not sys.stdin.readline():
            return
        now = _counters()
        found = {name: now[name] - counted[name] for name in now}
        print(
            json.dumps({"longest_pause_ms": 1000.0 * longest_s, "real_time": ahead, **found}),
            flush=True,
        )
        longest_s, counted = 0.0, now


def _get_ahead() -> bool:
    """Whether this process has priority over all others.

    If it may not have it, a pause may be another process on the core.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(AHEAD_OF_ALL))
    except OSError:
        return False
    return True


def _counters() -> dict[str, float]:
    """Seconds of CPU used by the host (proc(5), `steal`), and page faults that read the disk."""
    steal = int(Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[8])
    faults = dict(
        line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    )["pgmajfault"]
    return {"stolen_s": steal / os.sysconf("SC_CLK_TCK"), "major_faults": float(faults)}


if __name__ == "__main__":
    main()
