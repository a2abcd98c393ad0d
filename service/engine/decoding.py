"""Decodes images in threads, fairly and each within a budget of time.

Knows no transport, and no more of images than `Decode`.

A decode cannot be interrupted. One that passes its budget is answered for without it, and its
thread counts as busy until it ends: what waits is bounded, and leaves at its own deadline, even if
every thread is stuck.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DeadlineExceeded, DecodeTimeout
from service.engine.fair_queue import FairQueue
from service.engine.threads import yield_to_event_loop
from service.engine.tickets import Decode, as_outcome

Decoded = tuple[NDArray[np.uint8], float]
"""Pixels, and the seconds that they took."""
BusyObserver = Callable[[int], None]
"""Told how many threads are at work."""

DEFAULT_DECODE_S = 0.005
"""Assumed time of a decode until the first was measured, in seconds."""


@dataclass(eq=False, slots=True)
class _Job:
    decode: Decode
    encoded: bytes
    deadline: float
    future: asyncio.Future[Decoded]
    client: str
    bulk: bool
    waiting: bool = True
    """It is in the queue."""
    started: float = 0.0
    """On the clock of `time.monotonic`; 0 until a thread took it."""
    timer: asyncio.TimerHandle | None = None


class Decoders:
    """*threads* threads that take images from a fair queue; *budget_s* is the longest that a caller
    waits for its decode once that began.

    While *is_patient* says that nobody could go on with more pixels, the event loop is not woken
    for them: whoever can go on again calls `collect`. How many images wait is not bounded here: the
    pipeline admits.
    """

    def __init__(
        self,
        *,
        threads: int,
        budget_s: float,
        on_busy: BusyObserver | None = None,
        is_patient: Callable[[], bool] = lambda: False,
    ) -> None:
        self._threads = threads
        self._budget_s = budget_s
        self._on_busy = on_busy
        self._is_patient = is_patient
        self._reported = -1
        # Of the queue, what is at work, and the calls that threads have yet to answer.
        self._lock = threading.Lock()
        self._queue: FairQueue[_Job] = FairQueue()
        self._at_work = 0
        self._spare_calls = 0
        """Threads are called once for each image that is pushed. So many of those calls are for images that left without them."""
        self._finished: deque[tuple[_Job, Decoded | Exception | None]] = deque()
        self._callers = 0
        self._decode_s = DEFAULT_DECODE_S
        self._left_alone = asyncio.Event()
        self._left_alone.set()
        self._executor = ThreadPoolExecutor(
            max_workers=threads, thread_name_prefix="decode", initializer=yield_to_event_loop
        )

    @property
    def depth(self) -> int:
        """Images that wait for a thread, are in one, or wait to be collected; those that their
        caller gave up, but a thread did not, among them.
        """
        return len(self._queue) + self._at_work + len(self._finished)

    def expected_wait_s(self) -> float:
        """Time until one more image would be decoded, from the measured time of one."""
        return self._decode_s * (len(self._queue) + self._at_work) / self._threads

    async def drained(self) -> None:
        """Return once no caller waits.

        Each leaves at its deadline at the latest, whatever the threads do.
        """
        await self._left_alone.wait()

    def close(self) -> None:
        """End the threads. One that is stuck in a decode that nobody waits for ends with it."""
        self._executor.shutdown(wait=self._at_work == 0)

    async def decode(
        self,
        decode: Decode,
        encoded: bytes,
        *,
        deadline: float,
        client: str = "",
        bulk: bool = False,
    ) -> Decoded:
        """The pixels of *encoded*, and how long that took in seconds.

        *deadline* is on the clock of `time.monotonic`. Raises what *decode* raised,
        `DeadlineExceeded`, or `DecodeTimeout` past the budget. A caller that is cancelled takes its
        image out of the queue.
        """
        loop = asyncio.get_running_loop()
        job = _Job(decode, encoded, deadline, loop.create_future(), client, bulk)
        self._callers += 1
        self._left_alone.clear()
        self._push(job, loop)
        self._watch(job, loop, self._budget_s)
        try:
            return await job.future
        finally:
            if job.timer is not None:
                job.timer.cancel()
            with self._lock:
                if job.waiting:
                    self._queue.remove(job, client=client, bulk=bulk)
                    job.waiting = False
                    self._spare_calls += 1
            self._callers -= 1
            if not self._callers:
                # Who waits for this runs after the caller, which hands its pixels to the batcher
                # without a pause.
                self._left_alone.set()
            # An error that is raised here knows this frame, and would know itself by it: a circle
            # that keeps the photo until the collector comes.
            del job

    def collect(self) -> None:
        """Hand what was decoded to its callers. On the event loop."""
        while self._finished:
            job, outcome = self._finished.popleft()
            if isinstance(outcome, tuple):
                self._decode_s += 0.1 * (outcome[1] - self._decode_s)
            if job.future.done():
                continue
            if isinstance(outcome, tuple):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(outcome or _too_late())
        self._report_busy()

    def _push(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._queue.push(job, client=job.client, bulk=job.bulk)
            called = self._spare_calls > 0
            if called:
                self._spare_calls -= 1
        if not called:
            self._executor.submit(self._work, loop)
        self._report_busy()

    def _pop(self) -> _Job | None:
        """The next image, for the thread that asks; None if the one it was called for has left."""
        with self._lock:
            if not self._queue:
                self._spare_calls -= 1
                return None
            job = self._queue.pop()
            job.waiting = False
            self._at_work += 1
            return job

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: decode the next image, and leave what came of it."""
        job = self._pop()
        if job is None:
            return
        job.started = time.monotonic()
        outcome: Decoded | Exception | None = None
        try:
            # A future may be asked whether it is done from any thread.
            if not job.future.done() and job.started < job.deadline:
                outcome = job.decode(job.encoded), time.monotonic() - job.started
        except Exception as error:  # noqa: BLE001 - whatever the image causes belongs to its caller
            outcome = as_outcome(error)
        # First what is found here, then the question: who turns it from yes to no collects after
        # that.
        self._finished.append((job, outcome))
        with self._lock:
            self._at_work -= 1
        if isinstance(outcome, tuple) and self._is_patient():
            return
        try:
            loop.call_soon_threadsafe(self.collect)
        except RuntimeError:
            # The event loop has closed: nobody is left to be told.
            return

    def _report_busy(self) -> None:
        busy = min(len(self._queue) + self._at_work, self._threads)
        if self._on_busy is not None and busy != self._reported:
            self._reported = busy
            self._on_busy(busy)

    def _watch(self, job: _Job, loop: asyncio.AbstractEventLoop, budget_left_s: float) -> None:
        """Look at *job* when its budget or its deadline will have passed."""
        job.timer = loop.call_later(
            max(0.0, min(budget_left_s, job.deadline - time.monotonic())), self._check, job, loop
        )

    def _check(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        self.collect()
        if job.future.done():
            return
        now = time.monotonic()
        # The budget begins when a thread takes the image, and not before.
        budget_left_s = self._budget_s - (now - job.started) if job.started else self._budget_s
        if job.deadline <= now:
            job.future.set_exception(_too_late())
        elif budget_left_s <= 0.0:
            job.future.set_exception(
                DecodeTimeout(
                    f"the image was not decoded within {self._budget_s:g} s, the most that one may"
                    " take; send a smaller or simpler file"
                )
            )
        else:
            self._watch(job, loop, budget_left_s)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the request's deadline passed before its image could be decoded", retry_after_s=1.0
    )
