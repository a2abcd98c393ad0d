"""What the two ways of working through images share: `lanes.py`, where cores do everything, and
`stages.py`, where a device wants full batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import RequestError

Payload = bytes | NDArray[np.uint8]
"""An encoded image, or pixels `uint8 [H,W,3]` that are preprocessed already."""
Decode = Callable[[bytes], NDArray[np.uint8]]
"""Gives the pixels `uint8 [H,W,3]` of an encoded image, or raises what is wrong with it."""
Outputs = dict[str, NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8], Sequence[str]], Outputs]
"""Takes `uint8 [N,H,W,3]` and output names, gives each output with N rows."""

DEFAULT_QUEUE_BYTES = 256 * 1024 * 1024
DEFAULT_DECODE_TIMEOUT_S = 5.0


class WorkObserver(Protocol):
    """Told of what happens, for metrics, from whichever thread.

    Its methods must be quick and must not raise.
    """

    def batch_done(self, size: int, seconds: float) -> None:
        """A batch of *size* ran for *seconds*."""

    def depth_changed(self, depth: int) -> None:
        """*depth* items are waiting."""

    def busy_changed(self, threads: int) -> None:
        """*threads* threads that decode are at work."""


@dataclass(frozen=True)
class Limits:
    """What may be in hand at a time, and for how long."""

    max_batch_size: int
    max_queue_bytes: int = DEFAULT_QUEUE_BYTES
    """Of what is in hand as files; in stages of pixels too."""
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    """Longest decode of one image; its caller is answered then, though the thread goes on until it ends."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one image went, in seconds."""

    decode_s: float
    queue_s: float
    """Neither decoded nor in the model: the wait for a thread, and for others of its batch."""
    inference_s: float
    """Of its whole batch."""
    batch_size: int


@dataclass(frozen=True)
class Done:
    """One image's row of each output that was asked for."""

    outputs: Outputs
    timing: Timing


class Way(Protocol):
    """A way from images to the model's outputs.

    Use as `async with`; leaving it answers what was accepted, then stops.
    """

    async def __aenter__(self) -> Way: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    @property
    def depth(self) -> int:
        """Images that wait, for a thread or for the model."""

    def expected_wait_s(self) -> float:
        """Time until one more image would be begun, from measured times."""

    def expected_answer_s(self) -> float:
        """Time until one more image would be answered."""

    async def work(
        self,
        payload: Payload,
        *,
        deadline: float,
        outputs: tuple[str, ...],
        client: str,
        bulk: bool,
    ) -> Done:
        """The model's *outputs* for one image.

        *deadline* is on the clock of `time.monotonic`. Clients take turns; *bulk* images let others
        pass. Raises what is wrong with the image, `DecodeTimeout`, `QueueFull` for want of bytes,
        `DeadlineExceeded`, or what the model raised for this image. A caller that is cancelled
        takes its image out of the queue.
        """


def require_rows(values: Outputs, names: Sequence[str], *, count: int) -> None:
    """Raise `AssertionError` unless each output of *names* has *count* rows: another number would
    give images the answers of others.
    """
    for name in names:
        if len(values[name]) != count:
            raise AssertionError(f"output {name} has {len(values[name])} rows for {count} images")


def without_trace(error: Exception) -> Exception:
    """*error*; if it is the image's fault, without where it came from, nor where its causes did:
    nobody reads that, and its frames hold the photo.
    """
    part: BaseException | None = error if isinstance(error, RequestError) else None
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def as_outcome(error: Exception) -> Exception:
    """*error* as a future takes it, which refuses `StopIteration`: a coroutine would take that for
    its own end.
    """
    return (
        RuntimeError(f"it raised {error!r}")
        if isinstance(error, StopIteration)
        else without_trace(error)
    )
