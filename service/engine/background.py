"""A background thread of low priority, for work that no client waits for."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger("loupe")

NICENESS = 10
"""Linux gives such a thread a tenth of what a normal one gets on the same core.

With more niceness it would starve while it holds the GIL."""


class BackgroundThread:
    """One thread for work that may be dropped. At most *capacity* pieces of it wait or run."""

    def __init__(self, name: str, *, capacity: int) -> None:
        self._places = threading.Semaphore(capacity)
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=name, initializer=_lower_priority
        )

    def offer(self, work: Callable[[], None]) -> bool:
        """Do *work* when there is time; False if it is dropped, because too much waits already."""
        if not self._places.acquire(blocking=False):
            return False
        try:
            self._thread.submit(work).add_done_callback(self._done)
        except RuntimeError:
            return False  # It was closed meanwhile.
        return True

    def close(self) -> None:
        """Finish what runs, and drop what waits."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: Future[None]) -> None:
        self._places.release()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            log.error("background work failed", exc_info=error)


def _lower_priority() -> None:
    if sys.platform == "linux":
        # Of this thread alone: the kernel counts each as a process.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
