"""What lanes have in hand: images, and the state of each lane.

Everything but `Item.wanted` is read and changed under the lock of `Lanes`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from service.engine.tickets import Done, Outputs, Payload, Timing


@dataclass(eq=False, slots=True)
class Item:
    """An image on its way through a lane."""

    payload: Payload
    outputs: tuple[str, ...]
    deadline: float
    """On the clock of `time.monotonic`, in seconds."""
    future: asyncio.Future[Done] | None
    """None once its caller has gone: an error knows the frames that it passed, and these know the item, which must not know the error."""
    client: str
    bulk: bool
    queued_at: float
    waiting: bool = False
    """It is in the queue."""
    lane: Lane | None = None
    """Which last took it."""
    begun: float = 0.0
    decode_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Somebody waits for it, and its time has not passed. May be asked from any thread."""
        future = self.future
        return future is not None and not future.done() and time.monotonic() < self.deadline

    def done(self, values: Outputs, row: int, *, began: float, ended: float, of: int) -> Done:
        """Its answer: *row* of *values*, from a run of *of* images from *began* to *ended*."""
        run_s = ended - began
        waited_s = max(0.0, began - self.queued_at - self.decode_s)
        return Done(
            {name: values[name][row] for name in self.outputs},
            Timing(self.decode_s, waited_s, run_s, of),
        )


@dataclass(eq=False, slots=True)
class Lane:
    """What one thread has in hand. Changed under the lock of `Lanes`."""

    decoding: Item | None = None
    stuck: bool = False
    """What it decodes is past its budget."""
    slow_turn: bool = False
    """It was stuck in this turn, of whose time nothing is to be learned."""
    ready: list[Item] = field(default_factory=list)
    """Decoded: their payload is pixels."""
    running: list[Item] = field(default_factory=list)
    """In the model."""

    @property
    def before_run(self) -> int:
        """Images that the model has not begun; a stuck one is given up."""
        return len(self.ready) + (self.decoding is not None and not self.stuck)

    @property
    def busy(self) -> bool:
        """Its thread is at work, stuck or not."""
        return self.decoding is not None or bool(self.ready) or bool(self.running)

    def emptied(self) -> list[Item]:
        """What it had, of which it has nothing any more."""
        items = [*([self.decoding] if self.decoding else []), *self.ready, *self.running]
        self.decoding, self.stuck, self.ready, self.running = None, False, [], []
        return items
