"""Gathers single images into batches for the model, fairly, bounded, without polling.

Knows neither HTTP nor BentoML.

The vocabulary is Triton's: `max_batch_size`, `max_queue_delay`, `max_queue_size`, and a deadline
for each item. Everything but the model run happens on the event loop, so no lock is needed; a run
happens in a thread, and the model releases the GIL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.errors import DeadlineExceeded, NotReady, QueueFull
from service.engine.fair_queue import FairQueue
from service.engine.threads import yield_to_event_loop
from service.engine.tickets import (
    DEFAULT_QUEUE_BYTES,
    Outputs,
    Run,
    WorkObserver,
    as_outcome,
    require_rows,
)

DEFAULT_ITEM_S = 0.01
"""Assumed time for one image until the first batch was measured, in seconds."""


@dataclass(frozen=True)
class Answer:
    """One image's rows of the outputs, and where its time went."""

    outputs: Outputs
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Item:
    pixels_HWC: NDArray[np.uint8]
    outputs: tuple[str, ...]
    deadline: float
    """On the clock of `time.monotonic`, in seconds."""
    future: asyncio.Future[Answer]
    client: str
    bulk: bool
    queued_at: float = field(default_factory=time.monotonic)
    waiting: bool = True
    """It is in the queue."""


class Batcher:
    """Use as `async with`; leaving it answers what was accepted, then stops.

    *max_queue_delay_s* is the longest wait for a batch to fill; 0 takes what gathered while the
    last batch ran. *max_queue_bytes* bounds the pixels that wait. *max_in_flight* batches run at a
    time, each in a thread of its own: more than one pays where a run leaves cores idle. *on_free*
    is called when a run has ended, before the next batch is chosen: what it submits takes part in
    it.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queue_size: int,
        max_queue_bytes: int = DEFAULT_QUEUE_BYTES,
        max_in_flight: int = 1,
        observer: WorkObserver | None = None,
        on_free: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue_size = max_queue_size
        self._max_queue_bytes = max_queue_bytes
        self._max_in_flight = max_in_flight
        self._observer = observer
        self._on_free = on_free
        self._running = 0
        self._queue: FairQueue[_Item] = FairQueue()
        self._queue_bytes = 0
        self._arrived = asyncio.Event()
        self._filled = asyncio.Event()
        self._closing = False
        self._item_s = DEFAULT_ITEM_S
        self._free_runs = asyncio.Semaphore(max_in_flight)
        self._runs: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(
            max_workers=max_in_flight,
            thread_name_prefix="inference",
            initializer=yield_to_event_loop,
        )
        self._loop_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._loop_task = asyncio.create_task(self._serve(), name="batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._arrived.set()
        self._filled.set()
        if self._loop_task is not None:
            await self._loop_task
        self._executor.shutdown(wait=True)

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._queue)

    @property
    def is_occupied(self) -> bool:
        """As many batches run as may: another item could only wait. May be asked from any thread."""
        return self._running >= self._max_in_flight

    def expected_wait_s(self, items: int = 0) -> float:
        """Time until *items* more could be answered, from the measured time of an image."""
        return self._item_s * (len(self._queue) + items) / self._max_in_flight

    async def submit(
        self,
        pixels_HWC: NDArray[np.uint8],
        *,
        deadline: float,
        outputs: tuple[str, ...] = ("probabilities",),
        client: str = "",
        bulk: bool = False,
    ) -> Answer:
        """The model's *outputs* for one image `uint8 [H,W,3]`.

        *deadline* is on the clock of `time.monotonic`. Clients take turns; *bulk* images let others
        pass. Raises `QueueFull`, `DeadlineExceeded`, `NotReady` while closing, or what the model
        raised for this image. A caller that is cancelled takes its image out of the queue.
        """
        self._admit(deadline, pixels_HWC.nbytes)
        loop = asyncio.get_running_loop()
        item = _Item(pixels_HWC, outputs, deadline, loop.create_future(), client, bulk)
        self._queue.push(item, client=client, bulk=bulk)
        self._queue_bytes += pixels_HWC.nbytes
        self._arrived.set()
        if len(self._queue) >= self._max_batch_size:
            self._filled.set()
        self._report_depth()
        # A waiting item leaves at its deadline even if the model is stuck in an earlier batch.
        expiry = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, item)
        try:
            return await item.future
        finally:
            expiry.cancel()
            if item.waiting:
                self._queue.remove(item, client=client, bulk=bulk)
                self._left(item)
                self._report_depth()

    def _admit(self, deadline: float, pixel_bytes: int) -> None:
        if self._closing:
            raise NotReady(
                "the service is shutting down; send the request to another instance",
                retry_after_s=1.0,
            )
        if len(self._queue) >= self._max_queue_size:
            raise self._full(f"{len(self._queue)} images wait already, the most allowed")
        # An empty queue takes one image of any size: otherwise it could never be answered.
        if self._queue and self._queue_bytes + pixel_bytes > self._max_queue_bytes:
            raise self._full(
                f"images of {self._queue_bytes:,} bytes wait already and"
                f" {self._max_queue_bytes:,} may"
            )
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(
                "the request's deadline passed before its image could be queued",
                retry_after_s=self.expected_wait_s(),
            )

    def _full(self, reason: str) -> QueueFull:
        wait_s = self.expected_wait_s()
        return QueueFull(f"{reason}; try again in {wait_s:.1f} s", retry_after_s=wait_s)

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            # First a free run, then the choice: what comes meanwhile takes part in it.
            await self._free_runs.acquire()
            await self._fill()
            batch = self._take()
            if batch:
                run = asyncio.create_task(self._answer_and_free(batch))
                self._runs.add(run)
                run.add_done_callback(self._runs.discard)
                continue
            self._free_runs.release()
            if self._closing and not self._queue:
                break
        if self._runs:
            await asyncio.wait(self._runs)

    async def _answer_and_free(self, batch: list[_Item]) -> None:
        try:
            await self._answer(batch)
        finally:
            self._free_runs.release()

    async def _fill(self) -> None:
        """Wait until a whole batch is there, or the oldest item has waited for the queue delay."""
        if self._max_queue_delay_s == 0.0 or self._closing or not self._queue:
            return
        left_s = (
            min(item.queued_at for item in self._queue.heads())
            + self._max_queue_delay_s
            - time.monotonic()
        )
        if len(self._queue) < self._max_batch_size and left_s > 0.0:
            self._filled.clear()
            try:
                await asyncio.wait_for(self._filled.wait(), left_s)
            except TimeoutError:
                return

    def _take(self) -> list[_Item]:
        """The next items of the queue that still have a caller and time, at most a batch of them."""
        batch: list[_Item] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._max_batch_size:
            item = self._queue.pop()
            self._left(item)
            if item.deadline <= now:
                _expire(item)
            if not item.future.done():
                batch.append(item)
        if not self._queue and not self._closing:
            self._arrived.clear()
        self._report_depth()
        return batch

    def _left(self, item: _Item) -> None:
        """*item* is no longer in the queue."""
        item.waiting = False
        self._queue_bytes -= item.pixels_HWC.nbytes

    async def _answer(self, batch: list[_Item]) -> None:
        """Run *batch*; if that fails, run its items one by one, so that only the guilty one fails."""
        started = time.monotonic()
        names = tuple(dict.fromkeys(name for item in batch for name in item.outputs))
        try:
            values = await self._in_thread([item.pixels_HWC for item in batch], names)
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to its callers
            if len(batch) == 1:
                _fail(batch[0], as_outcome(error))
                return
            for item in batch:
                if item.deadline <= time.monotonic():
                    _expire(item)
                if not item.future.done():
                    await self._answer([item])
            return
        seconds = time.monotonic() - started
        self._item_s += 0.2 * (seconds / len(batch) - self._item_s)
        if self._observer is not None:
            self._observer.batch_done(len(batch), seconds)
        for row, item in enumerate(batch):
            if not item.future.done():
                outputs = {name: values[name][row] for name in item.outputs}
                item.future.set_result(
                    Answer(outputs, started - item.queued_at, seconds, len(batch))
                )

    async def _in_thread(self, pixels: list[NDArray[np.uint8]], names: tuple[str, ...]) -> Outputs:
        self._running += 1
        try:
            values = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._stack_and_run, pixels, names
            )
        finally:
            self._running -= 1
            if self._on_free is not None:
                self._on_free()
        require_rows(values, names, count=len(pixels))
        return values

    def _stack_and_run(self, pixels: list[NDArray[np.uint8]], names: tuple[str, ...]) -> Outputs:
        # In the thread: while it copies a batch, the event loop answers others.
        return self._run(np.stack(pixels), names)

    def _report_depth(self) -> None:
        if self._observer is not None:
            self._observer.depth_changed(len(self._queue))


def _expire(item: _Item) -> None:
    if not item.future.done():
        waited_s = time.monotonic() - item.queued_at
        _fail(
            item,
            DeadlineExceeded(
                f"no answer within the deadline; the image waited {waited_s:.1f} s",
                retry_after_s=1.0,
            ),
        )


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
