"""How the threads of a worker share its cores."""

from __future__ import annotations

import os
import sys
import threading

WORK_NICENESS = 5
"""Added to the niceness of threads that compute, so that the event loop, which needs a few per cent of a core, is never kept waiting by
them: a refusal, a probe or the next body does not wait for a decode. Source: setpriority(2), which on Linux sets it for each thread."""


def yield_to_event_loop() -> None:
    """Lower the priority of the calling thread. To be the first thing that a computing thread does."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.getpriority(os.PRIO_PROCESS, 0) + WORK_NICENESS))
