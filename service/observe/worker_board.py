"""What the supervisor and its workers tell each other: one block of shared memory.

A heartbeat in shared memory needs no disk, and no system call that could wait. Any worker can read
it, so `/metrics` and the probes of one worker speak for the whole server.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

REASONS = ("exited", "killed", "out_of_memory", "silent", "stuck", "start")
"""Why workers were replaced: they ended by themselves, by a signal, or by the kernel for want of
memory; they gave no sign of life, said that only a restart helps, or did not come up in time."""
MAX_WORKERS = 256
_HEADER = struct.Struct(f"=qq{len(REASONS)}q")
"""Number of workers, whether the server ends, and replaced workers by reason."""
_SLOT = struct.Struct("=dq")
"""Time of the last sign of life on the clock of `time.monotonic`, and the state."""
_BYTES = _HEADER.size + MAX_WORKERS * _SLOT.size


class State(IntEnum):
    """What a worker last said of itself. The supervisor says `MISSING` for one that is gone."""

    MISSING = 0
    STARTING = 1
    NOT_READY = 2
    READY = 3
    STUCK = 4
    ENDING = 5


@dataclass(frozen=True)
class Pulse:
    """The last sign of life of one worker."""

    at: float
    """On the clock of `time.monotonic`, which all processes of a machine share."""
    state: State


class WorkerBoard:
    """The block of memory behind *descriptor*, which every process of the server has open."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _BYTES)

    @classmethod
    def make(cls, workers: int) -> WorkerBoard:
        """A new one for *workers* workers. It has no name in any file system."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("loupe-workers")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _BYTES)
        board = cls(descriptor)
        _HEADER.pack_into(board._memory, 0, workers, 0, *[0] * len(REASONS))
        return board

    def write(self, slot: int, state: State) -> None:
        """The worker of *slot* gives a sign of life now."""
        _SLOT.pack_into(
            self._memory, _HEADER.size + slot * _SLOT.size, time.monotonic(), int(state)
        )

    def read(self, slot: int) -> Pulse:
        """The last sign of life of the worker of *slot*."""
        at, state = _SLOT.unpack_from(self._memory, _HEADER.size + slot * _SLOT.size)
        return Pulse(at, State(state))

    def count(self, reason: str) -> None:
        """One more worker was replaced for *reason*. For the supervisor alone."""
        counts = self.replaced()
        counts[reason] += 1
        _HEADER.pack_into(self._memory, 0, self.workers, int(self.ending), *counts.values())

    def end(self) -> None:
        """The server was asked to end."""
        _HEADER.pack_into(self._memory, 0, self.workers, 1, *self.replaced().values())

    @property
    def workers(self) -> int:
        """How many workers the server should have."""
        return int(_HEADER.unpack_from(self._memory)[0])

    @property
    def ending(self) -> bool:
        """Whether the server was asked to end."""
        return bool(_HEADER.unpack_from(self._memory)[1])

    def replaced(self) -> dict[str, int]:
        """How many workers were replaced since the start, by reason."""
        return dict(zip(REASONS, _HEADER.unpack_from(self._memory)[2:], strict=True))

    def states(self) -> dict[State, int]:
        """How many workers are in each state."""
        found = [self.read(slot).state for slot in range(self.workers)]
        return {state: found.count(state) for state in State}

    def metrics(self) -> Iterator[Metric]:
        """The workers by state, and how many were replaced."""
        states = GaugeMetricFamily("loupe_workers", "Workers by their state.", labels=["state"])
        for state, number in self.states().items():
            states.add_metric([state.name.lower()], number)
        yield states
        replaced = CounterMetricFamily(
            "loupe_worker_restarts_total",
            "Workers that were replaced, by reason.",
            labels=["reason"],
        )
        for reason, number in self.replaced().items():
            replaced.add_metric([reason], number)
        yield replaced
