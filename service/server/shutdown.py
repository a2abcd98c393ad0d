"""How a worker process ends: it announces SIGTERM, then it drains."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from models.machine import give_back_memory

log = logging.getLogger("loupe")

COLLECT_AFTER = 10_000
"""How many more objects are made than freed before the garbage collector runs: those of some
hundred requests at a time."""


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
