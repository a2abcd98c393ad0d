"""Work beside the answers: in one thread of low priority, bounded, and dropped when there is too
much.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger("loupe")

NICENESS = 10
"""Linux gives such a thread a tenth of what a normal one gets on the same core. More would let it starve while it holds the GIL."""


class Aside:
    """One thread for work that may be dropped. At most *capacity* pieces of work wait or run."""

    def __init__(self, name: str, *, capacity: int) -> None:
        self._capacity = capacity
        self._pending = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=name, initializer=_step_back
        )

    def offer(self, work: Callable[[], None]) -> bool:
        """Do *work* when there is time; False if too much waits already, and then it is never done."""
        with self._lock:
            if self._pending >= self._capacity:
                return False
            self._pending += 1
        try:
            self._thread.submit(work).add_done_callback(self._done)
        except RuntimeError:
            # Closed meanwhile.
            return False
        return True

    def close(self) -> None:
        """Finish what runs, and drop what waits."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._pending -= 1
        error = None if future.cancelled() else future.exception()
        if error is not None:
            log.error("work beside the answers failed", exc_info=error)


def _step_back() -> None:
    if sys.platform == "linux":
        # Of this thread alone: the kernel counts each as a process.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
