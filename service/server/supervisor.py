"""The supervisor: starts the workers, notices what becomes of them, and ends them.

It only needs the standard library, so it is small and starts at once. BentoML's own supervisor
looks for dead processes, not for silent ones. It waits without end for a worker that does not end,
and logs no exit status.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from models.machine import doing, out_of_memory_kills
from service.observe.worker_board import State, WorkerBoard

log = logging.getLogger("loupe")

LOOK_EVERY_S = 0.5
SILENT_S = 8.0
"""A worker says every second that it lives. One that is silent for so long is replaced."""
START_S = 120.0
"""Longest time from the start of a process to its first sign of life. On a busy machine, importing
alone may take many seconds. Models open later."""
LATE_S = 2.0
"""If the supervisor itself wakes so late, the machine was stopped, and no worker is at fault."""
TOGETHER_S = 0.05
"""What libraries print within this time becomes one line of the log."""
TRACEBACK_S = 0.4
"""Time for a silent worker to write where its threads are."""
SHORT_LIFE_S = 20.0
MOST_SHORT_LIVES = 5
"""After so many workers in a row that lived shorter than `SHORT_LIFE_S`, the server ends."""
LONGEST_PAUSE_S = 4.0
MARGIN_S = 2.0
"""For workers to close their models after the drain, before they are killed."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class WorkerProcess:
    """One process in the place *slot*."""

    slot: int
    process: asyncio.subprocess.Process
    started: float = field(default_factory=time.monotonic)
    reason: str = ""
    """Why the supervisor ends it; empty if it does not."""
    ends_by: float = math.inf
    """When it is killed, on the clock of `time.monotonic`."""

    @property
    def name(self) -> str:
        """For the log."""
        return f"worker {self.slot + 1} (pid {self.process.pid})"

    def signal(self, number: int) -> None:
        """Send signal *number* to the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Supervisor:
    """Keeps as many workers as *board* has places, until it is told to end.

    *command* makes the command line of the worker in a place. The workers inherit *descriptors*.
    They have *drain_s* seconds to end.
    """

    def __init__(
        self,
        command: Callable[[int], list[str]],
        *,
        board: WorkerBoard,
        descriptors: tuple[int, ...],
        drain_s: float,
        close_port: Callable[[], None],
    ) -> None:
        self._command = command
        self._board = board
        self._descriptors = descriptors
        self._drain_s = drain_s
        self._close_port = close_port
        self._ending = asyncio.Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._kills = out_of_memory_kills()
        self._short_lives = 0
        self._status = 0
        self._asked = 0

    async def run(self) -> int:
        """Exit status of the server, once all its workers have ended."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            # `nohup` has SIGHUP ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._asked_to_end, number)
        watching = asyncio.create_task(self._watch())
        ending = asyncio.create_task(self._end())
        try:
            await asyncio.gather(*(self._keep(slot) for slot in range(self._board.workers)))
        finally:
            for task in (watching, ending):
                task.cancel()
            self._signal(signal.SIGKILL)
        return self._status

    def _asked_to_end(self, number: int) -> None:
        name = signal.Signals(number).name
        self._asked += 1
        if self._asked == 1:
            log.info("%s: the server ends; it drains for up to %g s", name, self._drain_s)
            self._board.end()
            self._ending.set()
        elif self._asked == 2:
            # The workers got a first signal from `_end`. A second one skips their announcement.
            log.info("%s again: the workers drain now; a third time kills them", name)
            self._signal(signal.SIGTERM)
        else:
            log.warning("%s again: the workers are killed", name)
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self._workers.values():
            worker.signal(number)

    async def _end(self) -> None:
        """Wait for the end, and then for the workers, but not longer than they may drain."""
        await self._ending.wait()
        # The workers have the port open themselves. Open here too, it would take connections that
        # nobody accepts.
        self._close_port()
        self._signal(signal.SIGTERM)
        # A stopped worker would not see the signal.
        self._signal(signal.SIGCONT)
        await asyncio.sleep(self._drain_s + MARGIN_S)
        for worker in self._workers.values():
            log.error(
                "%s did not end within %g s%s; it is killed, and what it had accepted is lost",
                worker.name,
                self._drain_s,
                doing(worker.process.pid),
            )
        await kill(*self._workers.values())

    async def _keep(self, slot: int) -> None:
        """Keep a worker in place *slot*."""
        while not self._ending.is_set():
            try:
                worker = await self._start(slot)
            except OSError as error:
                log.error("worker %d cannot be started: %s", slot + 1, error)  # noqa: TRY400
                self._ended("start", lived_s=0.0)
                await self._pause()
                continue
            talking = asyncio.create_task(self._repeat(worker))
            status = await worker.process.wait()
            # What it started may still run.
            worker.signal(signal.SIGKILL)
            await asyncio.wait({talking}, timeout=1.0)
            del self._workers[slot]
            self._board.write(slot, State.MISSING)
            if not self._ending.is_set():
                self._replaced(worker, status)
                await self._pause()

    async def _start(self, slot: int) -> WorkerProcess:
        self._board.write(slot, State.STARTING)
        process = await asyncio.create_subprocess_exec(
            *self._command(slot),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=self._descriptors,
            # So that a stopped worker is woken when the supervisor dies: see `process.py`. Also,
            # Ctrl-C reaches the supervisor alone.
            process_group=0,
        )
        worker = self._workers[slot] = WorkerProcess(slot, process)
        if self._ending.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _repeat(self, worker: WorkerProcess) -> None:
        """Log what libraries print in *worker*. What comes together is one line."""
        stream = worker.process.stdout
        while stream is not None and (first := await stream.read(1)):
            await asyncio.sleep(TOGETHER_S)
            text = first + await stream.read(1 << 16)
            log.warning("%s printed: %s", worker.name, text.decode(errors="replace").strip())

    def _replaced(self, worker: WorkerProcess, status: int) -> None:
        """Log why *worker* ended with *status*, and count it."""
        reason = worker.reason or self._reason(status)
        lived_s = time.monotonic() - worker.started
        log.error(
            "%s ended after %.1f s: %s (%s); it is replaced",
            worker.name,
            lived_s,
            ended_by(status),
            reason,
        )
        self._ended(reason, lived_s=lived_s)

    def _ended(self, reason: str, *, lived_s: float) -> None:
        """Count a worker that ended, and end the server if too many ended early."""
        self._board.count(reason)
        self._short_lives = self._short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        if self._short_lives >= MOST_SHORT_LIVES:
            log.error(
                "%d workers in a row lived shorter than %g s: the server gives up. The lines above"
                " say why they ended; put that right and start the server again",
                self._short_lives,
                SHORT_LIFE_S,
            )
            self._status = 1
            self._board.end()
            self._ending.set()

    def _reason(self, status: int) -> str:
        before, self._kills = self._kills, out_of_memory_kills()
        if status >= 0:
            return "exited"
        return "out_of_memory" if status == -signal.SIGKILL and self._kills > before else "killed"

    async def _pause(self) -> None:
        """Wait before the next start, longer after each short life."""
        if self._short_lives > 1:
            pause_s = min(0.5 * 2 ** (self._short_lives - 2), LONGEST_PAUSE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)

    async def _watch(self) -> None:
        """Look for workers that are silent, or that say that they are stuck."""
        looked = time.monotonic()
        while not self._ending.is_set():
            await asyncio.sleep(LOOK_EVERY_S)
            late_s, looked = time.monotonic() - looked - LOOK_EVERY_S, time.monotonic()
            for worker in list(self._workers.values()):
                if late_s > LATE_S:
                    self._board.write(worker.slot, self._board.read(worker.slot).state)
                elif worker.ends_by < looked:
                    worker.signal(signal.SIGKILL)
                elif not worker.reason:
                    await self._look_at(worker)

    async def _look_at(self, worker: WorkerProcess) -> None:
        pulse = self._board.read(worker.slot)
        silent_s = time.monotonic() - pulse.at
        starting = pulse.state is State.STARTING
        if silent_s > (START_S if starting else SILENT_S):
            worker.reason = "start" if starting else "silent"
            log.error(
                "%s gave no sign of life for %.0f s%s; it is killed",
                worker.name,
                silent_s,
                doing(worker.process.pid),
            )
            self._board.write(worker.slot, State.MISSING)
            await kill(worker)
        elif pulse.state is State.STUCK:
            worker.reason, worker.ends_by = "stuck", time.monotonic() + self._drain_s
            log.error("%s says that only a restart helps; it is asked to end", worker.name)
            worker.signal(signal.SIGTERM)


async def kill(*workers: WorkerProcess) -> None:
    """Kill *workers*. If they can, they write first where each thread is."""
    for worker in workers:
        worker.signal(signal.SIGUSR1)
    await asyncio.sleep(TRACEBACK_S)
    for worker in workers:
        worker.signal(signal.SIGKILL)


def ended_by(status: int) -> str:
    """What *status* means: that of a process as `subprocess` has it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
