"""The way of a CPU: each lane, a thread, takes images from one queue and does everything with them,
from bytes to answers.

With decoding and the model in threads of their own, images that came late compete with older ones
for the same cores, and each image changes threads three times. A lane that is free begins the image
whose turn it is, as one core's queue would. If few images wait, each is run by itself as soon as it
is decoded; if many do, a lane decodes its share of them and runs those as one batch.

A decode cannot be interrupted. One that passes its budget is answered for without it, what its lane
has decoded before goes back to the head of the queue, and the lane counts as busy, and as no help,
until the decode ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from models.errors import DeadlineExceeded, DecodeTimeout, QueueFull
from service.engine.fair_queue import FairQueue
from service.engine.lane_state import Item, Lane
from service.engine.threads import keep_to, yield_to_event_loop
from service.engine.tickets import (
    Decode,
    Done,
    Limits,
    Payload,
    Run,
    WorkObserver,
    as_outcome,
    require_rows,
)

DEFAULT_ITEM_S = 0.01
"""Assumed time of a lane for one image until the first was measured, in seconds."""
END_LOOK_S = 0.05

log = logging.getLogger("loupe")


class Lanes:
    """A `Way` of *lanes* threads, each kept on its own of *cpus* where those are given.

    *observer* is told what happens.
    """

    def __init__(
        self,
        decode: Decode,
        run: Run,
        *,
        lanes: int,
        limits: Limits,
        observer: WorkObserver,
        cpus: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._run = run
        self._limits = limits
        self._observer = observer
        self._lanes = [Lane() for _ in range(lanes)]
        self._cpus = tuple(cpus)
        self._lock = threading.Lock()
        """Of the queue and of what the lanes have in hand."""
        self._arrived = threading.Condition(self._lock)
        self._ending = False
        self._queue: FairQueue[Item] = FairQueue()
        self._threads: list[threading.Thread] = []
        self._finished: deque[tuple[Item, Done | Exception]] = deque()
        self._loop_knows = False
        self._callers = 0
        self._held_bytes = 0
        self._item_s = DEFAULT_ITEM_S
        self._answer_s = 0.0
        """Measured time from the begin of an image's decode to its answer, the others of its batch among it."""
        self._left_alone = asyncio.Event()
        self._left_alone.set()

    async def __aenter__(self) -> Lanes:
        loop = asyncio.get_running_loop()
        for number, lane in enumerate(self._lanes):
            # A daemon: a decode that is stuck must not keep the process from ending.
            cpu = self._cpus[number] if self._cpus else None
            self._threads.append(
                threading.Thread(
                    target=self._serve, args=(lane, loop, cpu), name=f"lane-{number}", daemon=True
                )
            )
            self._threads[-1].start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Each caller leaves at its deadline at the latest, whatever the lanes do.
        await self._left_alone.wait()
        with self._lock:
            self._ending = True
            self._arrived.notify_all()
        # A run of the model is waited for, since a process that ends in the middle of one aborts; a
        # decode that is stuck is not.
        for thread, lane in zip(self._threads, self._lanes, strict=True):
            while thread.is_alive() and not lane.stuck:
                await asyncio.to_thread(thread.join, END_LOOK_S)
        self._report_depth()

    @property
    def depth(self) -> int:
        """Images that wait or are being decoded; one that is stuck is given up, and does not count."""
        return len(self._queue) + sum(lane.before_run for lane in self._lanes)

    def expected_wait_s(self) -> float:
        """Time until one more image would be begun, from the measured time of one."""
        live = sum(not lane.stuck for lane in self._lanes)
        ahead = self.depth + sum(len(lane.running) for lane in self._lanes)
        return self._item_s * max(0, ahead - live + 1) / max(1, live)

    def expected_answer_s(self) -> float:
        """Time until one more image would be answered."""
        return self.expected_wait_s() + self._answer_s

    async def work(
        self,
        payload: Payload,
        *,
        deadline: float,
        outputs: tuple[str, ...],
        client: str,
        bulk: bool,
    ) -> Done:
        """The model's *outputs* for one image; see `Way.work`."""
        size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
        # One image of any size is taken: otherwise it could never be answered.
        if self._held_bytes and self._held_bytes + size > self._limits.max_queue_bytes:
            wait_s = self.expected_wait_s()
            raise QueueFull(
                f"images of {self._held_bytes:,} bytes wait already and"
                f" {self._limits.max_queue_bytes:,} may; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Done] = loop.create_future()
        item = Item(payload, outputs, deadline, future, client, bulk, time.monotonic())
        self._held_bytes += size
        self._callers += 1
        self._left_alone.clear()
        with self._lock:
            self._push(item)
        self._report_depth()
        self._watch(item, loop, self._limits.decode_timeout_s)
        try:
            return await future
        finally:
            with self._lock:
                if item.waiting:
                    self._queue.remove(item, client=client, bulk=bulk)
                    item.waiting = False
                watched = item.lane is not None and item.lane.decoding is item
            # While it is being decoded, the images before it in its lane depend on somebody who
            # looks at the clock.
            if item.timer is not None and not watched:
                item.timer.cancel()
            self._report_depth()
            self._held_bytes -= size
            self._callers -= 1
            if not self._callers:
                self._left_alone.set()
            item.future = future = None  # type: ignore[assignment]

    def _push(self, item: Item, *, first: bool = False) -> None:
        """Under the lock: *item* waits for a lane."""
        item.waiting, item.lane = True, None
        self._queue.push(item, client=item.client, bulk=item.bulk, first=first)
        self._arrived.notify()

    def _serve(self, lane: Lane, loop: asyncio.AbstractEventLoop, cpu: int | None) -> None:
        """In a lane's thread, as all that follows up to `_collect`."""
        yield_to_event_loop()
        if cpu is not None:
            keep_to(cpu)
        while (share := self._share_of_next_turn()) is not None:
            try:
                self._take_turn(lane, share, loop)
            except Exception as error:
                # A fault of ours. Without this the lane would be gone, and nobody would know why
                # the service is slow.
                log.exception("a lane failed; its images get an error, and it goes on")
                with self._lock:
                    items = lane.emptied()
                self._finish(
                    [(item, RuntimeError(f"a lane failed: {error!r}")) for item in items], loop
                )

    def _share_of_next_turn(self) -> int | None:
        """How many of those that wait are one lane's share, as soon as any does; None at the end."""
        with self._lock:
            while not self._queue and not self._ending:
                self._arrived.wait()
            # Rounded down, so that the last ones are for whichever lane is free first.
            return (
                None
                if self._ending
                else min(max(1, len(self._queue) // len(self._lanes)), self._limits.max_batch_size)
            )

    def _take_turn(self, lane: Lane, share: int, loop: asyncio.AbstractEventLoop) -> None:
        """Decode *share* of the images that wait, and run them."""
        started, count = time.monotonic(), 0
        for item in self._begun(lane, share):
            self._decode_one(item, lane, loop)
            count += 1
        with self._lock:
            lane.running = batch = [item for item in lane.ready if item.wanted]
            lane.ready = []
        if batch:
            self._answer(batch, loop)
        with self._lock:
            lane.running = []
            self._report_busy()
            if count and not lane.slow_turn:
                self._item_s += 0.2 * ((time.monotonic() - started) / count - self._item_s)
            lane.slow_turn = False

    def _begun(self, lane: Lane, share: int) -> Iterator[Item]:
        """At most *share* images that are wanted, each as its decode begins.

        None is put aside: the others are for any lane.
        """
        for _ in range(share):
            with self._lock:
                item = self._next_wanted()
                lane.decoding = item
                if item is None:
                    return
                item.lane, item.begun = lane, time.monotonic()
                self._report_busy()
            yield item

    def _next_wanted(self) -> Item | None:
        while self._queue:
            item = self._queue.pop()
            item.waiting = False
            if item.wanted:
                return item
        return None

    def _decode_one(self, item: Item, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        payload, failure = item.payload, None
        if not isinstance(payload, np.ndarray):
            try:
                payload = self._decode(payload)
            except Exception as error:  # noqa: BLE001 - whatever the image causes belongs to its caller
                failure = as_outcome(error)
            item.decode_s = time.monotonic() - item.begun
        with self._lock:
            lane.decoding, lane.stuck = None, False
            if failure is None:
                item.payload = payload
                lane.ready.append(item)
        if failure is not None:
            self._finish([(item, failure)], loop)

    def _answer(self, batch: Sequence[Item], loop: asyncio.AbstractEventLoop) -> None:
        """Run *batch*; if that fails, run its images one by one, so that only the guilty one fails."""
        started = time.monotonic()
        names = tuple(dict.fromkeys(name for item in batch for name in item.outputs))
        try:
            values = self._run(np.stack([item.payload for item in batch]), names)
            require_rows(values, names, count=len(batch))
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to its callers
            if len(batch) == 1:
                self._finish([(batch[0], as_outcome(error))], loop)
            else:
                for item in batch:
                    if item.wanted:
                        self._answer([item], loop)
            return
        ended = time.monotonic()
        self._observer.batch_done(len(batch), ended - started)
        self._finish(
            [
                (item, item.done(values, row, began=started, ended=ended, of=len(batch)))
                for row, item in enumerate(batch)
            ],
            loop,
        )

    def _finish(
        self, found: Sequence[tuple[Item, Done | Exception]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._finished.extend(found)
        if self._loop_knows:
            return
        self._loop_knows = True
        try:
            loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            return  # The event loop has closed: nobody is left to be told.

    def _collect(self) -> None:
        """Hand what the lanes finished to its callers. On the event loop, as all that follows."""
        # First this: what is finished from here on calls again.
        self._loop_knows = False
        now = time.monotonic()
        while self._finished:
            item, outcome = self._finished.popleft()
            if isinstance(outcome, Done):
                self._answer_s += 0.1 * (now - item.begun - self._answer_s)
            if item.future is None or item.future.done():
                continue
            if isinstance(outcome, Done):
                item.future.set_result(outcome)
            else:
                item.future.set_exception(outcome)
        self._report_depth()

    def _watch(self, item: Item, loop: asyncio.AbstractEventLoop, budget_left_s: float) -> None:
        """Look at *item* when its budget, or its deadline if anybody waits for it, will have
        passed.
        """
        alone = item.future is None or item.future.done()
        left_s = budget_left_s if alone else min(budget_left_s, item.deadline - time.monotonic())
        item.timer = loop.call_later(max(0.0, left_s), self._check, item, loop)

    def _check(self, item: Item, loop: asyncio.AbstractEventLoop) -> None:
        self._collect()
        now = time.monotonic()
        with self._lock:
            decoding = (lane := item.lane) is not None and lane.decoding is item
            # The budget begins with the decode, and not before.
            budget_left_s = self._limits.decode_timeout_s - (now - item.begun if decoding else 0.0)
            stuck = decoding and budget_left_s <= 0.0
            if stuck and lane is not None:
                self._give_up(lane)
        future = None if item.future is None or item.future.done() else item.future
        if future is not None and item.deadline <= now:
            waited_s = now - item.queued_at
            future.set_exception(
                DeadlineExceeded(
                    f"no answer within the deadline; the image waited {waited_s:.1f} s",
                    retry_after_s=1.0,
                )
            )
        elif future is not None and stuck:
            budget = f"{self._limits.decode_timeout_s:g} s"
            future.set_exception(
                DecodeTimeout(
                    f"the image was not decoded within {budget}, the most that one may take; send a"
                    " smaller or simpler file"
                )
            )
        if not stuck and (decoding or (future is not None and not future.done())):
            self._watch(item, loop, budget_left_s)

    def _give_up(self, lane: Lane) -> None:
        """Under the lock: *lane* is stuck; what it has decoded goes back to the head of the queue."""
        lane.stuck = lane.slow_turn = True
        for item in reversed(lane.ready):
            self._push(item, first=True)
        lane.ready = []

    def _report_depth(self) -> None:
        self._observer.depth_changed(len(self._queue))

    def _report_busy(self) -> None:
        """Under the lock, so that no lane reports what was before another's report."""
        self._observer.busy_changed(sum(lane.busy for lane in self._lanes))
