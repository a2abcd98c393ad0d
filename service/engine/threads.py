"""How the threads of a worker share its cores."""

from __future__ import annotations

import logging
import os
import sys
import threading

WORK_NICENESS = 5
"""Added to the niceness of threads that compute.

The event loop needs a few per cent of a core. With this, a refusal, a probe or the next body does
not wait for a decode. Source: setpriority(2), which on Linux sets it for each thread."""

SWITCH_INTERVAL_S = 0.0005

log = logging.getLogger("loupe")


def yield_to_event_loop() -> None:
    """Lower the priority of the calling thread; warn if that is not allowed.

    The first call of a thread that computes.
    """
    if sys.platform != "linux":
        return
    try:
        os.setpriority(
            os.PRIO_PROCESS,
            threading.get_native_id(),
            min(19, os.getpriority(os.PRIO_PROCESS, 0) + WORK_NICENESS),
        )
    except OSError as error:
        log.warning(
            "threads that compute keep the event loop's priority, so that refusals and probes may"
            " wait for them: %s",
            error,
        )


def pin_to(cpu: int) -> None:
    """Keep the calling thread on *cpu*, Linux's number of it; warn if that is not allowed."""
    try:
        os.sched_setaffinity(0, {cpu})  # of the thread: 0 is the caller
    except OSError as error:
        log.warning(
            "a lane runs where the kernel puts it, for it cannot be kept on CPU %d: %s", cpu, error
        )


def hand_over_quickly() -> None:
    """Let a thread that waits for the GIL ask for it after half a millisecond instead of five.

    The event loop releases the GIL at each system call. It would get it back only after a whole
    turn of a thread that decodes.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
