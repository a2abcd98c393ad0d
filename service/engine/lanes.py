"""The worker pool of a CPU: each thread, a lane, takes images from their bytes to their answers.

With decoding and the model in separate threads, late images would compete with earlier ones for the
same cores, and each image would change threads three times. If few images wait, a lane runs each by
itself as soon as it is decoded. If many wait, it decodes its share and runs that as one batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.engine.tickets import Decode, Done, PoolLimits, Run, Ticket, WorkerThread
from service.engine.worker_pool import WorkerPool

if TYPE_CHECKING:
    from service.observe.metrics import PoolMetrics

DEFAULT_ITEM_S = 0.01
"""Assumed time of a lane for one image until the first is measured, in seconds."""


class Lanes(WorkerPool):
    """A pool of *lanes* threads. Each is pinned to its own of *cpus*, if there are any."""

    def __init__(
        self,
        decode: Decode,
        run: Run,
        *,
        lanes: int,
        limits: PoolLimits,
        metrics: PoolMetrics,
        cpus: Sequence[int] = (),
    ) -> None:
        super().__init__(decode, run, limits=limits, metrics=metrics)
        self._decoders = [
            WorkerThread(
                f"lane-{number}",
                self._serve,
                self._take_turn,
                cpu=cpus[number] if cpus else None,
            )
            for number in range(lanes)
        ]
        self._item_s = DEFAULT_ITEM_S

    def expected_wait_s(self) -> float:
        """Time until a lane would take one more image."""
        live = sum(not lane.stuck for lane in self._decoders)
        before = self.depth + sum(len(lane.running) for lane in self._decoders)
        return self._item_s * max(0, before - live + 1) / max(1, live)

    def _own_time_s(self, ticket: Ticket, done: Done) -> float:
        """From the begin of its decode to its answer, with the others of its batch."""
        return time.monotonic() - ticket.begun

    def _keep(self, ticket: Ticket, worker: WorkerThread) -> None:
        worker.ready.append(ticket)

    def _take_turn(self, lane: WorkerThread) -> bool:
        """Decode the lane's share of the images that wait, and run them."""
        with self._lock:
            if not self._wait(self._queue):
                return False
            # Rounded down: the last images are for whichever lane is free first.
            share = max(1, len(self._queue) // len(self._decoders))
        started, count = time.monotonic(), 0
        # One at a time, so that other lanes may take the rest while this one decodes.
        while count < min(share, self._limits.max_batch_size) and self._decode_next(lane):
            count += 1
        with self._lock:
            lane.running = batch = [ticket for ticket in lane.ready if ticket.is_awaited]
            lane.ready = []
        if batch:
            self._answer(batch)
        with self._lock:
            lane.running = []
            self._report_busy()
            if count and not lane.slow_turn:
                self._item_s += 0.2 * ((time.monotonic() - started) / count - self._item_s)
            lane.slow_turn = False
        return True
