"""The worker pool of a GPU: some threads decode, and others run full batches of what was decoded.

The vocabulary is Triton's: `max_batch_size`, `max_queue_delay`, `max_queue_size`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from service.engine.fair_queue import FairQueue
from service.engine.tickets import Decode, Done, PoolLimits, Run, Ticket, WorkerThread
from service.engine.worker_pool import WorkerPool

if TYPE_CHECKING:
    from service.observe.metrics import PoolMetrics

DEFAULT_DECODE_S, DEFAULT_RUN_S = 0.005, 0.01
"""Assumed times of one image until the first is measured, in seconds."""


class Stages(WorkerPool):
    """A pool of *decode_threads* threads that decode and *max_in_flight* threads that run batches.

    *max_queue_delay_s* is the longest wait for a batch to fill. With 0, a batch is what gathered
    while the last one ran. Several batches at a time pay where one run leaves the device idle.
    """

    def __init__(
        self,
        decode: Decode,
        run: Run,
        *,
        limits: PoolLimits,
        metrics: PoolMetrics,
        decode_threads: int = 1,
        max_queue_delay_s: float = 0.0,
        max_in_flight: int = 1,
    ) -> None:
        super().__init__(decode, run, limits=limits, metrics=metrics)
        self._max_queue_delay_s = max_queue_delay_s
        self._pixels: FairQueue[Ticket] = FairQueue(self._lock)
        """Decoded images that wait for a run."""
        self._queues.append(self._pixels)
        self._decoders = [
            WorkerThread(f"decode-{number}", self._serve, self._decode_turn)
            for number in range(decode_threads)
        ]
        self._runners = [
            WorkerThread(f"inference-{number}", self._serve, self._run_turn)
            for number in range(max_in_flight)
        ]
        self._decode_s, self._run_s = DEFAULT_DECODE_S, DEFAULT_RUN_S

    def expected_wait_s(self) -> float:
        """Time until the model would begin one more image."""
        live = sum(not worker.stuck for worker in self._decoders)
        decode_s = self._decode_s * (self.depth - len(self._pixels)) / max(1, live)
        return decode_s + self._run_s * self.depth / len(self._runners)

    def _own_time_s(self, ticket: Ticket, done: Done) -> float:
        """Its own decode and run, and the rest of the run that it finds under way."""
        return done.timing.decode_s + 2.0 * done.timing.inference_s

    def _enqueue(self, ticket: Ticket) -> None:
        if isinstance(ticket.payload, np.ndarray):
            ticket.begun = ticket.queued_at
            self._push(ticket, self._pixels)
        else:
            super()._enqueue(ticket)

    def _keep(self, ticket: Ticket, worker: WorkerThread) -> None:
        self._decode_s += 0.1 * (ticket.decode_s - self._decode_s)
        if ticket.is_awaited and isinstance(ticket.payload, np.ndarray):
            ticket.held_bytes += ticket.payload.nbytes
            self._held_bytes += ticket.payload.nbytes
            self._push(ticket, self._pixels)

    def _decode_turn(self, worker: WorkerThread) -> bool:
        with self._lock:
            if not self._wait(self._queue):
                return False
        self._decode_next(worker)
        with self._lock:
            self._report_busy()
        return True

    def _run_turn(self, worker: WorkerThread) -> bool:
        with self._lock:
            if not self._wait(self._pixels):
                return False
            while (left_s := self._fill_left_s()) > 0.0:
                self._pixels.arrived.wait(left_s)
            batch = worker.running
            while len(batch) < self._limits.max_batch_size:
                ticket = self._next_awaited(self._pixels)
                if ticket is None:
                    break
                batch.append(ticket)
        if batch:
            started = time.monotonic()
            self._answer(batch)
            self._run_s += 0.2 * ((time.monotonic() - started) / len(batch) - self._run_s)
        with self._lock:
            worker.running = []
        return True

    def _fill_left_s(self) -> float:
        """Under the lock: how long the next batch may still wait to fill."""
        if self.is_closing or not 0 < len(self._pixels) < self._limits.max_batch_size:
            return 0.0
        oldest = min(ticket.begun + ticket.decode_s for ticket in self._pixels.heads())
        return oldest + self._max_queue_delay_s - time.monotonic()
