"""A worker's signs of life, and its ends that need neither Python nor a supervisor."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.observe.worker_board import State, WorkerBoard

if TYPE_CHECKING:
    from service.rollout.worker import Worker
    from service.server.shutdown import Ending

INTERVAL_S = 1.0
ALONE_S = 12.0
"""The kernel ends a worker that was silent for so long, if its supervisor did not. That needs no
lock of the interpreter, so it also ends one that hangs in native code without a supervisor."""

MARGIN_S = 4.0
"""For a worker whose supervisor died, to close its models after the drain."""


@dataclass(frozen=True)
class Place:
    """What the supervisor gave this process."""

    slot: int
    board: WorkerBoard
    log: int
    """Descriptor of the log. Standard output and error are for what other libraries print."""


_taken: list[Place] = []


def take_place(slot: int, *, board: int, log: int) -> None:
    """Make this process the worker of *slot*. The others are descriptors."""
    _taken.append(Place(slot, WorkerBoard(board), log))


def place() -> Place | None:
    """What the supervisor gave this process; None without Loupe's supervisor."""
    return _taken[0] if _taken else None


async def beat(place: Place, *, worker: Worker, ending: Ending, drain_s: float) -> None:
    """Say every second, from the event loop, that this worker lives and how it is.

    Once asked to end, the worker has *drain_s* seconds.
    """
    announced = False
    while True:
        if not ending.begun:
            end_within(max(ALONE_S, drain_s))
        elif not announced:
            announced = True
            end_within(drain_s + MARGIN_S)
        place.board.write(place.slot, state_of(worker, ending))
        await asyncio.sleep(INTERVAL_S)


def end_within(seconds: float) -> None:
    """Have the kernel end this process by SIGALRM, unless this is called again before."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def state_of(worker: Worker, ending: Ending) -> State:
    """What *worker* is at this moment."""
    if ending.begun:
        return State.ENDING
    if not worker.is_alive():
        return State.STUCK
    return State.READY if worker.is_ready() else State.NOT_READY
