"""A model and a decoder that the test holds in its hands: they say when they began, and end when
the test says so.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import UndecodableImage

PATIENCE_S = 20.0
"""Bound of every wait. Reached only by a test that fails."""


class HeldModel:
    """Answers each image with its own number, `[number, -number]`; an image above *guilty_from*
    fails its whole batch.
    """

    def __init__(self, *, held: bool = False, guilty_from: int = 1 << 30) -> None:
        self.batches: list[list[int]] = []
        """The numbers of the images of each run, in order."""
        self.asked: list[tuple[str, ...]] = []
        """The output names of each run."""
        self._guilty_from = guilty_from
        self.running = 0
        self.most_running = 0
        self._counting = threading.Lock()
        self._go = threading.Event()
        self._begun = threading.Semaphore(0)
        if not held:
            self._go.set()

    def run(
        self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """What `models.runtime.session.Model.run` gives, once the test lets it."""
        numbers = [number_of(pixels_HWC) for pixels_HWC in pixels_NHWC]
        with self._counting:
            self.batches.append(numbers)
            self.asked.append(tuple(outputs))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self._begun.release()
        try:
            if not self._go.wait(PATIENCE_S):
                raise TimeoutError("the test never let the model go")
        finally:
            with self._counting:
                self.running -= 1
        guilty = [number for number in numbers if number >= self._guilty_from]
        if guilty:
            raise ValueError(f"cannot compute {guilty[0]}")
        values_NK = np.array([[number, -number] for number in numbers], dtype=np.float32)
        return {name: values_NK * (index + 1) for index, name in enumerate(sorted(outputs))}

    def let_go(self) -> None:
        """End the run under way, and all that follow."""
        self._go.set()

    def wait_begun(self) -> None:
        """Return once one more run began. For a thread, not for the event loop."""
        if not self._begun.acquire(timeout=PATIENCE_S):
            raise TimeoutError("the model was never run")


class HeldDecode:
    """Decodes `b"7"` as the image of number 7, once the test lets it; `b"bad"` is no image."""

    def __init__(self, *, held: bool = False) -> None:
        self.order: list[bytes] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, encoded: bytes) -> NDArray[np.uint8]:
        self.order.append(encoded)
        self.begun.release()
        assert self.go.wait(PATIENCE_S), "the test never let the decoder go"
        if encoded == b"bad":
            raise UndecodableImage("no image")
        return image(int(encoded))

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S), (
            "nothing was decoded"
        )


def drive(test: Callable[[], Awaitable[None]]) -> None:
    """Run *test* within `PATIENCE_S`, on an event loop that lost no error."""

    async def bounded() -> None:
        lost: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: lost.append(str(context["message"]))
        )
        async with asyncio.timeout(PATIENCE_S):
            await test()
        assert lost == []

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a thread tells the loop, which needs turns and no time
        await asyncio.sleep(0)


def image(number: int) -> NDArray[np.uint8]:
    """Pixels `uint8 [2,2,3]` that carry *number*, 0 to 16,777,215, in each of their pixels."""
    return np.full((2, 2, 3), [number >> 16, (number >> 8) & 255, number & 255], dtype=np.uint8)


def number_of(pixels_HWC: NDArray[np.uint8]) -> int:
    """The number that `image` put into *pixels_HWC*."""
    red, green, blue = (int(value) for value in pixels_HWC[0, 0])
    return red << 16 | green << 8 | blue


def in_s(seconds: float) -> float:
    """A deadline *seconds* from now."""
    return time.monotonic() + seconds


class Recorder:
    """`PoolMetrics` that remember."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seconds: list[float] = []
        self.depths: list[int] = []
        self.busy: list[int] = []

    def batch_done(self, size: int, seconds: float) -> None:
        """As `PoolMetrics`."""
        self.sizes.append(size)
        self.seconds.append(seconds)

    def depth_changed(self, depth: int) -> None:
        """As `PoolMetrics`."""
        self.depths.append(depth)

    def busy_changed(self, threads: int) -> None:
        """As `PoolMetrics`."""
        self.busy.append(threads)
