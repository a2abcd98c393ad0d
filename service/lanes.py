"""The way of a CPU: each lane, a thread, takes images from one queue and does everything with them, from bytes to answers.

With decoding and the model in threads of their own, pixels of images that came late compete with older ones for the same cores, and each image
changes threads three times. A lane that is free begins the oldest images there are, as one core's queue would, and their pixels never leave it. If
few images wait, each is run by itself as soon as it is decoded; if many do, the lanes share them, and what a lane took is one batch.

A decode cannot be interrupted. One that passes its budget is answered for without it, the rest of its lane's images go back to the queue,
and the lane counts as busy until the decode ends.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.errors import DeadlineExceeded, DecodeTimeout, QueueFull
from service.fair_queue import FairQueue
from service.threads import yield_to_event_loop
from service.work import Decode, Done, Limits, Payload, Run, Timing, WorkObserver, require_rows, without_trace

DEFAULT_ITEM_S = 0.01
"""Assumed time of a lane for one image until the first was measured, in seconds."""
END_PATIENCE_S = 1.0
"""A lane without work ends at once; one that is stuck in a decode that nobody waits for ends with its process."""

log = logging.getLogger("loupe")


@dataclass(eq=False, slots=True)
class _Item:
    payload: Payload
    outputs: tuple[str, ...]
    deadline: float
    """On the clock of `time.monotonic`, in seconds."""
    future: asyncio.Future[Done]
    client: str
    bulk: bool
    queued_at: float
    waiting: bool = False
    """It is in the queue."""
    lane: _Lane | None = None
    """Which last took it."""
    begun: float = 0.0
    """When its decode began; 0: not yet."""
    decode_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Somebody waits for it, and its time has not passed. May be asked from any thread."""
        return not self.future.done() and time.monotonic() < self.deadline


@dataclass(eq=False, slots=True)
class _Lane:
    """What one thread has in hand. Changed under the lock of `Lanes`."""

    taken: deque[_Item] = field(default_factory=deque)
    """To be decoded, in this order."""
    decoding: _Item | None = None
    ready: list[_Item] = field(default_factory=list)
    """Decoded: their payload is pixels."""
    running: int = 0
    """Images in the model."""

    @property
    def before_run(self) -> int:
        return len(self.taken) + len(self.ready) + (self.decoding is not None)


class Lanes:
    """A `Way` of *lanes* threads. *observer* is told what happens."""

    def __init__(self, decode: Decode, run: Run, *, lanes: int, limits: Limits, observer: WorkObserver | None = None) -> None:
        self._decode = decode
        self._run = run
        self._limits = limits
        self._observer = observer
        self._lanes = [_Lane() for _ in range(lanes)]
        self._lock = threading.Lock()
        """Of the queue and of what the lanes have in hand."""
        self._queue: FairQueue[_Item] = FairQueue()
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each image that came, which may by then have gone with others; False ends a lane."""
        self._threads: list[threading.Thread] = []
        self._finished: deque[tuple[_Item, Done | Exception]] = deque()
        self._loop_knows = False
        self._callers = 0
        self._held_bytes = 0
        self._item_s = DEFAULT_ITEM_S
        self._taken_s = 0.0
        """Measured time from where a lane takes an image to its answer: its own, and that of the others of its batch."""
        self._left_alone = asyncio.Event()
        self._left_alone.set()

    async def __aenter__(self) -> Lanes:
        loop = asyncio.get_running_loop()
        for number, lane in enumerate(self._lanes):
            # A daemon: a decode that is stuck must not keep the process from ending.
            thread = threading.Thread(target=self._serve, args=(lane, loop), name=f"lane-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Each caller leaves at its deadline at the latest, whatever the lanes do.
        await self._left_alone.wait()
        for _ in self._threads:
            self._calls.put(False)
        ends_s = time.monotonic() + END_PATIENCE_S
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, ends_s - time.monotonic()))

    @property
    def depth(self) -> int:
        """Images that wait or are being decoded."""
        return len(self._queue) + sum(lane.before_run for lane in self._lanes)

    def expected_wait_s(self) -> float:
        """Time until one more image would be begun, from the measured time of one."""
        return self._item_s * (self.depth + sum(lane.running for lane in self._lanes)) / len(self._lanes)

    def expected_answer_s(self) -> float:
        """Time until one more image would be answered."""
        return self.expected_wait_s() + self._taken_s

    async def work(self, payload: Payload, *, deadline: float, outputs: tuple[str, ...], client: str, bulk: bool) -> Done:
        """The model's *outputs* for one image; see `Way.work`."""
        size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
        # One image of any size is taken: otherwise it could never be answered.
        if self._held_bytes and self._held_bytes + size > self._limits.max_queue_bytes:
            wait_s = self.expected_wait_s()
            raise QueueFull(
                f"images of {self._held_bytes:,} bytes wait already and {self._limits.max_queue_bytes:,} may; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        loop = asyncio.get_running_loop()
        item = _Item(payload, outputs, deadline, loop.create_future(), client, bulk, time.monotonic())
        self._held_bytes += size
        self._callers += 1
        self._left_alone.clear()
        with self._lock:
            self._push(item)
        self._report_depth()
        self._watch(item, loop, self._limits.decode_timeout_s)
        try:
            return await item.future
        finally:
            if item.timer is not None:
                item.timer.cancel()
            if item.waiting:
                with self._lock:
                    # Asked again: a lane may have taken it meanwhile.
                    if item.waiting:
                        self._queue.remove(item, client=client, bulk=bulk)
                        item.waiting = False
                self._report_depth()
            self._held_bytes -= size
            self._callers -= 1
            if not self._callers:
                self._left_alone.set()
            # An error that is raised here knows this frame, and would know itself by it: a circle that keeps the photo until the collector comes.
            del item

    def _push(self, item: _Item) -> None:
        """Under the lock: *item* waits for a lane."""
        item.waiting, item.lane, item.begun = True, None, 0.0
        self._queue.push(item, client=item.client, bulk=item.bulk)
        self._calls.put(True)

    # In a lane's thread.

    def _serve(self, lane: _Lane, loop: asyncio.AbstractEventLoop) -> None:
        yield_to_event_loop()
        while self._calls.get():
            started = time.monotonic()
            self._take(lane)
            if not lane.taken:
                continue
            self._report_busy()
            count = self._decode_taken(lane, loop)
            self._run_ready(lane, loop)
            self._report_busy()
            if count:
                self._item_s += 0.2 * ((time.monotonic() - started) / count - self._item_s)

    def _take(self, lane: _Lane) -> None:
        """Take this lane's share of what waits, at most a batch."""
        with self._lock:
            # Rounded down, so that the last ones wait for whichever lane is free first. Tried against rounding up, at random arrivals: the same
            # throughput, p99 lower by a fifth.
            share = max(1, len(self._queue) // len(self._lanes)) if self._queue else 0
            for _ in range(min(share, self._limits.max_batch_size)):
                item = self._queue.pop()
                item.waiting, item.lane = False, lane
                lane.taken.append(item)

    def _decode_taken(self, lane: _Lane, loop: asyncio.AbstractEventLoop) -> int:
        """Decode what *lane* took. How many that were."""
        count = 0
        for item in self._begun(lane):
            self._decode_one(item, loop)
            count += 1
        return count

    def _begun(self, lane: _Lane) -> Iterator[_Item]:
        """The images that *lane* took and that are still wanted, each as its decode begins."""
        while True:
            with self._lock:
                lane.decoding = None
                while lane.taken and not lane.taken[0].wanted:
                    lane.taken.popleft()
                if not lane.taken:
                    return
                item = lane.decoding = lane.taken.popleft()
                item.begun = time.monotonic()
            yield item

    def _decode_one(self, item: _Item, loop: asyncio.AbstractEventLoop) -> None:
        payload = item.payload
        if not isinstance(payload, np.ndarray):
            try:
                payload = self._decode(payload)
            except Exception as error:  # noqa: BLE001 - whatever the image causes belongs to its caller
                self._finish([(item, without_trace(error))], loop)
                return
            item.decode_s = time.monotonic() - item.begun
        with self._lock:
            item.payload = payload
            if item.lane is not None:
                item.lane.ready.append(item)

    def _run_ready(self, lane: _Lane, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            batch = [item for item in lane.ready if item.wanted]
            lane.ready.clear()
            lane.running = len(batch)
        if batch:
            self._answer(batch, loop)
        lane.running = 0

    def _answer(self, batch: Sequence[_Item], loop: asyncio.AbstractEventLoop) -> None:
        """Run *batch*; if that fails, run its images one by one, so that only the guilty one fails."""
        started = time.monotonic()
        names = tuple(dict.fromkeys(name for item in batch for name in item.outputs))
        try:
            values = self._run(_stacked(batch), names)
            require_rows(values, names, count=len(batch))
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to its callers
            if len(batch) == 1:
                self._finish([(batch[0], error)], loop)
            else:
                for item in batch:
                    if item.wanted:
                        self._answer([item], loop)
            return
        ended = time.monotonic()
        seconds = ended - started
        if self._observer is not None:
            self._observer.batch_done(len(batch), seconds)
        found: list[tuple[_Item, Done | Exception]] = []
        for row, item in enumerate(batch):
            outputs = {name: values[name][row] for name in item.outputs}
            waited_s = max(0.0, ended - item.queued_at - item.decode_s - seconds)
            found.append((item, Done(outputs, Timing(item.decode_s, waited_s, seconds, len(batch)))))
        self._finish(found, loop)

    def _finish(self, found: Sequence[tuple[_Item, Done | Exception]], loop: asyncio.AbstractEventLoop) -> None:
        self._finished.extend(found)
        if self._loop_knows:
            return
        self._loop_knows = True
        try:
            loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            # The event loop has closed: nobody is left to be told.
            return

    # On the event loop.

    def _collect(self) -> None:
        """Hand what the lanes finished to its callers."""
        # First this: what is finished from here on calls again.
        self._loop_knows = False
        now = time.monotonic()
        while self._finished:
            item, outcome = self._finished.popleft()
            if isinstance(outcome, Done):
                self._taken_s += 0.1 * (now - item.begun - self._taken_s)
            if item.future.done():
                continue
            if isinstance(outcome, Done):
                item.future.set_result(outcome)
            else:
                item.future.set_exception(outcome)
        self._report_depth()

    def _watch(self, item: _Item, loop: asyncio.AbstractEventLoop, budget_left_s: float) -> None:
        """Look at *item* when its budget or its deadline will have passed."""
        item.timer = loop.call_later(max(0.0, min(budget_left_s, item.deadline - time.monotonic())), self._check, item, loop)

    def _check(self, item: _Item, loop: asyncio.AbstractEventLoop) -> None:
        self._collect()
        if item.future.done():
            return
        now = time.monotonic()
        lane = item.lane
        decoding = lane is not None and lane.decoding is item
        # The budget begins with the decode, and not before.
        budget_left_s = self._limits.decode_timeout_s - (now - item.begun if decoding else 0.0)
        if item.deadline <= now:
            waited_s = now - item.queued_at
            item.future.set_exception(DeadlineExceeded(f"no answer within the deadline; the image waited {waited_s:.1f} s", retry_after_s=1.0))
        elif budget_left_s <= 0.0:
            budget = f"{self._limits.decode_timeout_s:g} s"
            item.future.set_exception(
                DecodeTimeout(f"the image was not decoded within {budget}, the most that one may take; send a smaller or simpler file")
            )
        else:
            self._watch(item, loop, budget_left_s)
            return
        if decoding and lane is not None:
            self._rescue(lane)

    def _rescue(self, lane: _Lane) -> None:
        """Give back to the queue what waits behind a decode that nobody waits for."""
        with self._lock:
            stranded = [item for item in (*lane.ready, *lane.taken) if item.wanted]
            lane.ready.clear()
            lane.taken.clear()
            for item in stranded:
                self._push(item)

    def _report_depth(self) -> None:
        if self._observer is not None:
            self._observer.depth_changed(len(self._queue))

    def _report_busy(self) -> None:
        if self._observer is not None:
            self._observer.busy_changed(sum(lane.before_run + lane.running > 0 for lane in self._lanes))


def _stacked(batch: Sequence[_Item]) -> NDArray[np.uint8]:
    return np.stack([item.payload for item in batch if isinstance(item.payload, np.ndarray)])
