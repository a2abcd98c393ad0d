"""One worker process, as the supervisor starts it: `python -m service.server.process`.

It is bound to its supervisor before anything is imported that takes time. So no moment is left in
which a killed supervisor leaves an orphan.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def main() -> None:
    """Run one worker until it is told to end."""
    parser = argparse.ArgumentParser()
    for name in ("supervisor", "slot", "board", "log"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options, bentoml_options = parser.parse_known_args()
    end_with_parent(options.supervisor)
    # Has this process write where each of its threads is, even while the interpreter hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Not earlier: these imports take a moment.
    from service.server.heartbeat import take_place
    from service.server.patches import run_worker

    take_place(options.slot, board=options.board, log=options.log)
    run_worker(bentoml_options)


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when *parent*, its parent, dies.

    It then drains and ends, and keeps no port open. A stopped process would not see the signal. So
    the supervisor puts each worker into a process group of its own: when it dies, the group is
    orphaned, and the kernel wakes its stopped members. Source: POSIX, `_exit`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # The parent died before the call above, so no signal will come.
        sys.exit(1)


if __name__ == "__main__":
    main()
