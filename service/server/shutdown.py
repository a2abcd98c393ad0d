"""How a worker process ends: asked to, it first says so, then drains; its supervisor gone, it does
not stay behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from models.machine import give_back_memory

log = logging.getLogger("loupe")

COLLECT_AFTER = 10_000
"""Objects made and not freed until the garbage collector looks through them: those of some hundred requests under way."""

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


class Ending:
    """Whether this worker was asked to end.

    Readiness is false from then on; requests are answered until the server drains.
    """

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def announced(self, delay_s: float) -> Iterator[None]:
        """Inside, the first SIGTERM is announced for *delay_s* before the server's own handler gets
        it; a second one gets there at once.

        To be entered on the event loop, in the main thread, after the server has put its handler
        there.
        """
        drain = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def announce(signum: int, frame: FrameType | None) -> None:
            again, self.begun = self.begun, True
            if callable(drain):
                # A signal's handler may run between any two steps of the loop: it only leaves word.
                loop.call_soon_threadsafe(
                    _after, loop, 0.0 if again else delay_s, lambda: drain(signum, frame)
                )

        signal.signal(signal.SIGTERM, announce)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, drain)


def _after(loop: asyncio.AbstractEventLoop, delay_s: float, call: Callable[[], object]) -> None:
    if delay_s > 0.0:
        log.info("asked to end: not ready from now on, draining in %g s", delay_s)
    loop.call_later(delay_s, call)


def settle() -> None:
    """Give back what starting took, and take what is left for permanent: the garbage collector need
    not look through it again and again.

    For the moment when the model is open. During a full collection over all modules no request
    would be answered.
    """
    gc.collect()
    gc.freeze()
    # What a request takes is freed with its last reference: the collector, for what refers to
    # itself, need not look 700 objects later.
    gc.set_threshold(COLLECT_AFTER)
    give_back_memory()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, however that dies: it
    drains and ends, and holds no port.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        log.warning(
            "cannot watch the supervisor: %s; a worker could outlive it",
            os.strerror(ctypes.get_errno()),
        )
    if os.getppid() != parent:
        # It died in between, and no signal will come.
        os.kill(os.getpid(), signal.SIGTERM)
