"""The ticket of one image: its caller, its deadline, its place in a queue, its outcome.

`worker_pool.py` moves tickets; `lanes.py` and `stages.py` decide which thread takes which.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from service.engine.fair_queue import FairQueue

Payload = bytes | NDArray[np.uint8]
"""An encoded image, or pixels `uint8 [H,W,3]` that are preprocessed already."""
Decode = Callable[[bytes], NDArray[np.uint8]]
"""Gives the pixels `uint8 [H,W,3]` of an encoded image. Raises what is wrong with the image."""
PIXELS = "pixels"
"""A name beside the graph's outputs: what the model was given for the image."""
Outputs = dict[str, NDArray[Any]]
"""By name; Any: float32, but `PIXELS` are uint8."""
Run = Callable[[NDArray[np.uint8], Sequence[str]], Outputs]
"""Takes `uint8 [N,H,W,3]` and output names, and gives each output with N rows."""

DEFAULT_QUEUE_BYTES = 256 * 1024 * 1024
DEFAULT_DECODE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class PoolLimits:
    """How much a worker pool may hold, and how long a decode may take."""

    max_batch_size: int
    max_queue_bytes: int = DEFAULT_QUEUE_BYTES
    """Bytes of the files that wait or are at work; in stages also of their pixels."""
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    """After this time the caller gets `DecodeTimeout`. The thread goes on until the decode ends."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one image went, in seconds."""

    decode_s: float
    queue_s: float
    """Time spent waiting for a thread and for the other images of the batch."""
    inference_s: float
    """Time of the whole batch."""
    batch_size: int


@dataclass(frozen=True)
class Done:
    """One image's row of each output that was asked for."""

    outputs: Outputs
    timing: Timing


@dataclass(eq=False, slots=True)
class Ticket:
    """One image, from its arrival to its outcome.

    The event loop owns `future` and `timer`, the decoding thread `decode_s`. The rest is read and
    changed under the lock of the `WorkerPool`.
    """

    payload: Payload
    outputs: tuple[str, ...]
    deadline: float
    """On the clock of `time.monotonic`, in seconds."""
    future: asyncio.Future[Done] | None
    """None once the caller has left. This breaks a reference cycle: the error holds its frames, the
    frames hold the ticket, and the ticket must not hold the error."""
    client: str
    bulk: bool
    held_bytes: int
    queued_at: float = field(default_factory=time.monotonic)
    queue: FairQueue[Ticket] | None = None
    worker: WorkerThread | None = None
    """The thread that took it last."""
    begun: float = 0.0
    """When its decode began."""
    decode_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def is_awaited(self) -> bool:
        """A caller waits for it, and its deadline has not passed. Any thread may ask."""
        future = self.future
        return future is not None and not future.done() and time.monotonic() < self.deadline

    def done(self, values: Outputs, row: int, *, began: float, ended: float, batch: int) -> Done:
        """Its outcome: *row* of *values*, from a run of *batch* images from *began* to *ended*."""
        waited_s = max(0.0, began - self.queued_at - self.decode_s)
        return Done(
            {
                name: np.asarray(self.payload) if name == PIXELS else values[name][row]
                for name in self.outputs
            },
            Timing(self.decode_s, waited_s, ended - began, batch),
        )


class WorkerThread(threading.Thread):
    """One thread of a `WorkerPool` and the tickets that it holds, changed under the pool's lock."""

    def __init__(
        self,
        name: str,
        serve: Callable[[WorkerThread], None],
        take_turn: Callable[[WorkerThread], bool],
        *,
        cpu: int | None = None,
    ) -> None:
        """*take_turn* waits for work and does it; it returns False once no more will come.

        The thread is pinned to *cpu*, if there is one.
        """
        # A daemon: a stuck decode must not keep the process alive.
        super().__init__(target=serve, args=(self,), name=name, daemon=True)
        self.take_turn = take_turn
        self.cpu = cpu
        self.stuck = False
        """Its decode has passed the limit of time."""
        self.slow_turn = False
        """It was stuck in this turn. The time of such a turn is not measured."""
        self.decoding: Ticket | None = None
        self.ready: list[Ticket] = []
        """Decoded: their payload is pixels."""
        self.running: list[Ticket] = []

    @property
    def before_run(self) -> int:
        """Images that the model has not begun, without a stuck one."""
        return len(self.ready) + (self.decoding is not None and not self.stuck)

    @property
    def busy(self) -> bool:
        """The thread is at work, stuck or not."""
        return self.decoding is not None or bool(self.ready) or bool(self.running)

    def emptied(self) -> list[Ticket]:
        """The tickets that it held; it holds none afterwards."""
        tickets = [*([self.decoding] if self.decoding else []), *self.ready, *self.running]
        self.decoding, self.stuck, self.ready, self.running = None, False, [], []
        return tickets
