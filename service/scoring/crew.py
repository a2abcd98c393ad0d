"""Units handed out to lanes that come and go, their records taken back in order. Knows Ray, but neither models nor images.

A lane that is lost with its node (or by itself) takes nothing along: its units go to others, and another lane is asked for in its stead. A lane that
Ray has no room for yet is not waited for. Bounded everywhere: units out or waiting for their turn, losses a unit may cause, lanes that fail to open.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from models.errors import LoupeError, ScoringError
from service.scoring.items import Unit
from service.scoring.unit import Record

WINDOW = 2
"""Units out or done before their turn, for each that the lanes may hold: a slow node keeps the others from going on no sooner."""
MOST_LOSSES = 5
"""Lanes in a row that fail to open, or that one unit takes with it, before the job gives up: nodes are lost, but not always at the same image."""
LOOK_EVERY_S = 10.0
"""How often it looks whether the cluster has grown."""
PATIENCE_S = 30.0
"""Without any lane, after which it says that it waits."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How lanes are had and used."""

    hire: Callable[[], Any]
    """A new actor: Ray places it when there is room."""
    ask: Callable[[Any, Unit], Any]
    """Ray's reference to the record of a unit that was handed to an actor."""
    places: Callable[[], int]
    """How many lanes the cluster is large enough for, now."""
    depth: int
    """Units that a lane holds: at work and next."""
    tell: Callable[[str], None]


@dataclass(eq=False)
class _Hand:
    """A lane, as the driver sees it."""

    actor: Any  # Any: Ray's handle
    units: int = 0
    """That it holds."""


class Crew:
    """The lanes of one job."""

    def __init__(self, ray: Any, terms: Terms) -> None:  # Any: the module, which may not be installed
        self._ray, self._terms = ray, terms
        self._opening: dict[Any, _Hand] = {}
        self._open: list[_Hand] = []
        self._at_work: dict[Any, tuple[_Hand, Unit]] = {}
        self._again: deque[Unit] = deque()
        self._done: dict[int, Record] = {}
        self._order: deque[int] = deque()
        self._losses: dict[int, int] = {}
        self._misses = 0
        self.is_started = False
        """Whether it was given units."""
        self._coming = _Coming(())
        self._looked_s = self._alone_s = time.monotonic()

    def start(self, units: Iterable[Unit]) -> None:
        """Hand out the first of *units*, to lanes that are open. Waits for nothing."""
        self._coming, self.is_started = _Coming(units), True
        if self._coming.count(1):
            self._hire(self._coming)
            self._hand_out(self._coming)

    def answers(self) -> Iterator[Record]:
        """The record of each unit, in order. Raises `ScoringError`."""
        coming = self._coming
        while self._order or coming.count(1):
            self._hand_out(coming)
            self._await(coming)
            while self._order and self._order[0] in self._done:
                index = self._order.popleft()
                self._losses.pop(index, None)
                yield self._done.pop(index)

    def is_open(self) -> bool:
        """Whether a lane is ready for units. The first call asks for as many as there is room for."""
        if not (self._opening or self._open):
            self._ask_for(self._terms.places())
        done, _ = self._ray.wait([*self._opening], timeout=0) if self._opening else ([], [])
        for reference in done:
            self._opened(reference)
        return bool(self._open)

    def _hire(self, coming: _Coming) -> None:
        """As many lanes as there is work and room for."""
        wanted = self._terms.places()
        wanted = max(1, min(wanted, len(self._order) + coming.count(wanted)))
        self._ask_for(wanted)

    def _ask_for(self, lanes: int) -> None:
        for _ in range(lanes - len(self._opening) - len(self._open)):
            actor = self._terms.hire()
            self._opening[actor.open.remote()] = _Hand(actor)

    def _hand_out(self, coming: _Coming) -> None:
        window = WINDOW * self._terms.depth * max(1, len(self._open))
        # Round by round, so that no lane holds a second unit while another has none.
        for held in range(self._terms.depth):
            for hand in [hand for hand in self._open if hand.units == held]:
                if self._again:
                    unit = self._again.popleft()
                elif len(self._order) < window and coming.count(1):
                    unit = coming.take()
                    self._order.append(unit.index)
                else:
                    return
                hand.units += 1
                self._at_work[self._terms.ask(hand.actor, unit)] = (hand, unit)

    def _await(self, coming: _Coming) -> None:
        """Until something has happened, or it is time to look around."""
        asked = [*self._at_work, *self._opening]
        done, _ = self._ray.wait(asked, timeout=LOOK_EVERY_S)
        for reference in done:
            if reference in self._opening:
                self._opened(reference)
            else:
                self._answered(reference)
        now_s = time.monotonic()
        if self._open:
            self._alone_s = now_s
        elif now_s - self._alone_s > PATIENCE_S:
            self._terms.tell("waiting for the cluster: it has no room for a lane yet; `ray status` shows who has its cores")
            self._alone_s = float("inf")
        if now_s - self._looked_s > LOOK_EVERY_S or not (self._open or self._opening):
            self._hire(coming)
            self._looked_s = now_s

    def _opened(self, reference: Any) -> None:
        hand = self._opening.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise _ours(error) from error
        except self._ray.exceptions.RayError as error:
            self._misses += 1
            if self._misses >= MOST_LOSSES:
                raise ScoringError(
                    f"{self._misses} lanes in a row could not be opened on the cluster, the last one because: {error} "
                    "Nodes need this package, in this version, and memory for a model on each core"
                ) from error
            return
        self._misses = 0
        self._open.append(hand)

    def _answered(self, reference: Any) -> None:
        hand, unit = self._at_work.pop(reference)
        hand.units -= 1
        errors = self._ray.exceptions
        try:
            self._done[unit.index] = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise _ours(error) from error
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError) as error:
            self._losses[unit.index] = self._losses.get(unit.index, 0) + 1
            if self._losses[unit.index] >= MOST_LOSSES:
                names = f"{unit.items[0].path} to {unit.items[-1].path}"
                raise ScoringError(
                    f"{MOST_LOSSES} workers were lost one after the other at the same images, {names}, the last one because: {error} "
                    "The job's state is kept: go on with --resume, with either engine"
                ) from error
            self._again.append(unit)
            if isinstance(error, errors.RayActorError) and hand in self._open:
                self._open.remove(hand)
                self._looked_s = 0.0


class _Coming:
    """Units that are still to be taken, a few of them seen already."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = iter(units)
        self._seen: deque[Unit] = deque()

    def count(self, most: int) -> int:
        """How many are left, counted up to *most*."""
        while len(self._seen) < most:
            unit = next(self._units, None)
            if unit is None:
                break
            self._seen.append(unit)
        return min(most, len(self._seen))

    def take(self) -> Unit:
        return self._seen.popleft()


def _ours(error: Any) -> LoupeError:
    """What a lane raised, out of Ray's wrapping."""
    if isinstance(error.cause, LoupeError):
        return error.cause
    return ScoringError(f"a lane of the cluster failed: {error}. The job's state is kept: go on with --resume, with either engine")
