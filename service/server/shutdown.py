"""How a worker process ends: it announces SIGTERM, drains, and never outlives its supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from models.machine import give_back_memory

log = logging.getLogger("loupe")

COLLECT_AFTER = 10_000
"""How many more objects are made than freed before the garbage collector runs: those of some
hundred requests at a time."""
PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


class Ending:
    """Whether this worker was asked to end.

    If so, readiness is false. Requests are still answered until the server drains.
    """

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def announced(self, delay_s: float) -> Iterator[None]:
        """Inside, the server gets the first SIGTERM *delay_s* later, and a second one at once.

        To be entered on the event loop, in the main thread, after the server has set its handler.
        """
        drain = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def announce(signum: int, frame: FrameType | None) -> None:
            wait_s = 0.0 if self.begun else delay_s
            self.begun = True

            def begin() -> None:
                if wait_s:
                    log.info("asked to end: not ready from now on, draining in %g s", wait_s)
                if callable(drain):
                    loop.call_later(wait_s, drain, signum, frame)

            # The handler of a signal runs between any two steps of the loop, so it only schedules.
            loop.call_soon_threadsafe(begin)

        signal.signal(signal.SIGTERM, announce)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, drain)


def settle() -> None:
    """Free what starting needed, and keep the garbage collector from what stays.

    For the moment when the model is open. A full collection over all modules would stop every
    request.
    """
    gc.collect()
    gc.freeze()
    # Most objects of a request are freed with their last reference. By default the collector would
    # look for reference cycles after every 700 objects.
    gc.set_threshold(COLLECT_AFTER)
    give_back_memory()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies.

    It then drains and ends, and keeps no port open.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.warning("cannot watch the supervisor: %s; a worker could outlive it", reason)
    if os.getppid() != parent:
        # The parent died before the call above, so no signal will come.
        os.kill(os.getpid(), signal.SIGTERM)
