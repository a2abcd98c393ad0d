"""The worker pool: how an image waits for a thread, and how its outcome reaches the caller.

A caller submits an image and awaits its outcome. Whatever happens, it leaves at its deadline. An
image that fails in a batch fails alone: the batch is run again image by image.

A decode cannot be interrupted. If it passes its limit, the caller gets `DecodeTimeout`, other
threads take what the thread had decoded before, and the thread counts as busy until the decode
ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from models.errors import DeadlineExceeded, DecodeTimeout, QueueFull
from service.engine.batch import as_outcome, run_batch
from service.engine.fair_queue import FairQueue
from service.engine.threads import pin_to, yield_to_event_loop
from service.engine.tickets import (
    Decode,
    Done,
    Payload,
    PoolLimits,
    Run,
    Ticket,
    WorkerThread,
)

if TYPE_CHECKING:
    from service.observe.metrics import PoolMetrics

JOIN_S = 0.05
"""Between two looks at whether a thread that ends is stuck."""

log = logging.getLogger("loupe")


class WorkerPool(ABC):
    """Threads that turn images into the model's outputs.

    Use as `async with`. Leaving it answers what was accepted, then stops.
    """

    def __init__(
        self, decode: Decode, run: Run, *, limits: PoolLimits, metrics: PoolMetrics
    ) -> None:
        self._decode = decode
        self._run = run
        self._limits = limits
        self._metrics = metrics
        self._lock = threading.Lock()
        """Guards the queues and the tickets that threads hold."""
        self._queue: FairQueue[Ticket] = FairQueue(self._lock)
        self._queues = [self._queue]
        self._decoders: list[WorkerThread] = []
        self._runners: list[WorkerThread] = []
        """Threads that only run the model."""
        self.is_closing = False
        self._finished: deque[tuple[Ticket, Done | Exception]] = deque()
        self._collect_is_due = False
        self._callers = 0
        self._held_bytes = 0
        self._own_s = 0.0
        """Measured time of one image, apart from those before it in the queue."""
        self._idle = asyncio.Event()
        self._idle.set()

    @abstractmethod
    def expected_wait_s(self) -> float:
        """Time until a thread would take one more image, from measured times."""

    @abstractmethod
    def _keep(self, ticket: Ticket, worker: WorkerThread) -> None:
        """Under the lock: *worker* has decoded *ticket*."""

    @abstractmethod
    def _own_time_s(self, ticket: Ticket, done: Done) -> float:
        """What *ticket* adds to `_own_s`."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for worker in (*self._decoders, *self._runners):
            worker.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.is_closing = True
        self._wake_all()
        # Each caller leaves at its deadline at the latest, whatever the threads do.
        await self._idle.wait()
        self._wake_all()
        # A process that ends during a run of the model aborts, so runs are waited for. A stuck
        # decode is not.
        for worker in (*self._decoders, *self._runners):
            while worker.is_alive() and not worker.stuck:
                await asyncio.to_thread(worker.join, JOIN_S)
        self._report_depth()

    def _wake_all(self) -> None:
        with self._lock:
            for queue in self._queues:
                queue.arrived.notify_all()

    @property
    def depth(self) -> int:
        """Images that wait or are being decoded, without stuck ones."""
        return sum(map(len, self._queues)) + sum(one.before_run for one in self._decoders)

    def expected_answer_s(self) -> float:
        """Time until one more image would be answered."""
        return self.expected_wait_s() + self._own_s

    async def submit(
        self,
        payload: Payload,
        *,
        deadline: float,
        outputs: tuple[str, ...] = ("probabilities",),
        client: str = "",
        bulk: bool = False,
    ) -> Done:
        """The model's *outputs* for one image.

        *deadline* is on the clock of `time.monotonic`. Clients take turns; *bulk* images let others
        pass. Raises what is wrong with the image, `DecodeTimeout`, `QueueFull` if the queue holds
        too many bytes, `DeadlineExceeded`, or what the model raised for this image. A caller that
        is cancelled takes its image out of the queue.
        """
        size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
        # One image of any size is accepted: otherwise it could never be answered.
        if self._held_bytes and self._held_bytes + size > self._limits.max_queue_bytes:
            wait_s = self.expected_wait_s()
            raise QueueFull(
                f"waiting images hold {self._held_bytes:,} of"
                f" {self._limits.max_queue_bytes:,} bytes; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        future: asyncio.Future[Done] = self._loop.create_future()
        ticket = Ticket(payload, outputs, deadline, future, client, bulk, size)
        self._callers += 1
        self._idle.clear()
        with self._lock:
            self._held_bytes += size
            self._enqueue(ticket)
        self._report_depth()
        self._watch(ticket, self._limits.decode_timeout_s)
        try:
            return await future
        finally:
            with self._lock:
                if ticket.queue is not None:
                    ticket.queue.remove(ticket, client=client, bulk=bulk)
                    ticket.queue = None
                self._held_bytes -= ticket.held_bytes
                ticket.future = None
                # The frame must not keep the future: see `Ticket.future`.
                del future
                watched = ticket.worker is not None and ticket.worker.decoding is ticket
            # While it is being decoded, the timer stays for the images that its thread has decoded.
            if ticket.timer is not None and not watched:
                ticket.timer.cancel()
            self._report_depth()
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    def _enqueue(self, ticket: Ticket) -> None:
        """Under the lock: *ticket* is new."""
        self._push(ticket, self._queue)

    def _push(self, ticket: Ticket, queue: FairQueue[Ticket], *, first: bool = False) -> None:
        """Under the lock: *ticket* waits in *queue*."""
        ticket.queue, ticket.worker = queue, None
        queue.push(ticket, client=ticket.client, bulk=ticket.bulk, first=first)
        queue.arrived.notify()

    def _next_awaited(self, queue: FairQueue[Ticket]) -> Ticket | None:
        """Under the lock: the next ticket of *queue* whose caller still waits."""
        while queue:
            ticket = queue.pop()
            ticket.queue = None
            if ticket.is_awaited:
                return ticket
        return None

    def _wait(self, queue: FairQueue[Ticket]) -> bool:
        """Under the lock: return once a ticket is in *queue*; False if none will come any more."""
        while not queue:
            if self.is_closing and not self._callers:
                return False
            queue.arrived.wait()
        return True

    def _serve(self, worker: WorkerThread) -> None:
        """The loop of *worker*'s thread. Every method up to `_finish` runs in such a thread."""
        yield_to_event_loop()
        if worker.cpu is not None:
            pin_to(worker.cpu)
        while True:
            try:
                if not worker.take_turn(worker):
                    return
            except Exception as error:
                # A bug of ours. If the thread ended, nobody would know why the service is slow.
                log.exception("a worker thread failed; its images get an error, and it continues")
                with self._lock:
                    tickets = worker.emptied()
                failure = RuntimeError(f"a worker thread failed: {error!r}")
                self._finish(*((ticket, failure) for ticket in tickets))

    def _decode_next(self, worker: WorkerThread) -> bool:
        """Decode the next ticket whose caller still waits; False if there is none."""
        with self._lock:
            ticket = worker.decoding = self._next_awaited(self._queue)
            if ticket is None:
                return False
            ticket.worker, ticket.begun = worker, time.monotonic()
            self._report_busy()
        payload, failure = ticket.payload, None
        if not isinstance(payload, np.ndarray):
            try:
                payload = self._decode(payload)
            except Exception as error:  # noqa: BLE001 - it belongs to the image's caller
                failure = as_outcome(error)
            ticket.decode_s = time.monotonic() - ticket.begun
        with self._lock:
            worker.decoding, worker.stuck = None, False
            if failure is None:
                ticket.payload = payload
                self._keep(ticket, worker)
        if failure is not None:
            self._finish((ticket, failure))
        return True

    def _answer(self, batch: Sequence[Ticket]) -> None:
        self._finish(*run_batch(self._run, batch, self._metrics))

    def _finish(self, *outcomes: tuple[Ticket, Done | Exception]) -> None:
        self._finished.extend(outcomes)
        if self._collect_is_due:
            return
        self._collect_is_due = True
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            return  # The event loop has closed, so there is no caller.

    def _collect(self) -> None:
        """Hand outcomes to their callers. Runs on the event loop, as do the methods below."""
        # First this: a thread that finishes an image from here on calls again.
        self._collect_is_due = False
        while self._finished:
            ticket, outcome = self._finished.popleft()
            if isinstance(outcome, Done):
                self._own_s += 0.1 * (self._own_time_s(ticket, outcome) - self._own_s)
            if ticket.future is None or ticket.future.done():
                continue
            if isinstance(outcome, Done):
                ticket.future.set_result(outcome)
            else:
                ticket.future.set_exception(outcome)
        self._report_depth()

    def _watch(self, ticket: Ticket, decode_left_s: float) -> None:
        """Check *ticket* when its decode reaches the limit, or at the deadline of its caller."""
        alone = ticket.future is None or ticket.future.done()
        left_s = decode_left_s if alone else min(decode_left_s, ticket.deadline - time.monotonic())
        ticket.timer = self._loop.call_later(max(0.0, left_s), self._check, ticket)

    def _check(self, ticket: Ticket) -> None:
        self._collect()
        now = time.monotonic()
        with self._lock:
            decoding = (worker := ticket.worker) is not None and worker.decoding is ticket
            # The limit counts from the begin of the decode.
            decode_left_s = self._limits.decode_timeout_s - (now - ticket.begun if decoding else 0)
            stuck = decoding and decode_left_s <= 0.0
            if stuck and worker is not None:
                worker.stuck = worker.slow_turn = True
                for ready in reversed(worker.ready):
                    self._push(ready, self._queue, first=True)
                worker.ready = []
        future = None if ticket.future is None or ticket.future.done() else ticket.future
        if future is not None and ticket.deadline <= now:
            waited_s = now - ticket.queued_at
            future.set_exception(
                DeadlineExceeded(
                    f"no answer within the deadline; the image waited {waited_s:.1f} s",
                    retry_after_s=1.0,
                )
            )
        elif future is not None and stuck:
            limit = f"{self._limits.decode_timeout_s:g} s"
            future.set_exception(
                DecodeTimeout(
                    f"the image was not decoded within {limit}, the most that one may take; send a"
                    " smaller or simpler file"
                )
            )
        if not stuck and (decoding or (future is not None and not future.done())):
            self._watch(ticket, decode_left_s)

    def _report_depth(self) -> None:
        self._metrics.depth_changed(sum(map(len, self._queues)))

    def _report_busy(self) -> None:
        """Under the lock, so that reports of several threads come in order."""
        self._metrics.busy_changed(sum(worker.busy for worker in self._decoders))
