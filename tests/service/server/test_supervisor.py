"""The supervisor with real processes that stand in for workers: they import no BentoML."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from service.observe.worker_board import State, WorkerBoard
from service.server import supervisor as module
from service.server.supervisor import Supervisor, ended_by

WORKER = """
import faulthandler, os, signal, sys, time
from service.observe.worker_board import State, WorkerBoard
board, slot = WorkerBoard(int(sys.argv[1])), int(sys.argv[2])
faulthandler.register(signal.SIGUSR1, all_threads=True)
def beat(seconds=1e9, state=State.READY):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        board.write(slot, state)
        time.sleep(0.02)
"""
PATIENCE_S = 20.0


class Run:
    """A supervisor in this process, whose workers run *script*."""

    def __init__(self, script: str, *, workers: int = 1, drain_s: float = 0.1) -> None:
        self.board = WorkerBoard.make(workers)
        self.closed = False
        self.others = psutil.Process().children()
        descriptor = self.board.descriptor
        self.supervisor = Supervisor(
            lambda slot: [sys.executable, "-c", WORKER + script, str(descriptor), str(slot)],
            board=self.board,
            descriptors=(descriptor,),
            drain_s=drain_s,
            close_port=self._close,
        )

    def workers(self) -> list[psutil.Process]:
        """The processes that it started: other tests of this process have children too."""
        return [one for one in psutil.Process().children() if one not in self.others]

    def _close(self) -> None:
        self.closed = True

    def until(self, condition: Callable[["Run"], bool]) -> int:
        """Exit status, once *condition* was true and SIGTERM was sent."""

        async def run() -> int:
            running = asyncio.create_task(self.supervisor.run())
            began = time.monotonic()
            while not condition(self) and not running.done():
                assert time.monotonic() - began < PATIENCE_S
                await asyncio.sleep(0.02)
            if not running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            return await running

        return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOOK_EVERY_S": 0.05, "SILENT_S": 0.6, "MARGIN_S": 0.2}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(module.log, "propagate", True)
    monkeypatch.setattr(module.log, "disabled", False)
    return caplog


def all_ready(run: Run) -> bool:
    return run.board.states()[State.READY] == run.board.workers


def replaced(reason: str) -> Callable[[Run], bool]:
    return lambda run: run.board.replaced()[reason] >= 1 and all_ready(run)


def test_workers_that_say_they_live_are_left_alone_and_end_in_order(log):
    run = Run("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); beat()", workers=2)
    assert run.until(all_ready) == 0
    assert run.closed
    assert sum(run.board.replaced().values()) == 0
    assert run.board.states()[State.MISSING] == 2
    assert "SIGTERM: the server ends" in log.text


FIRST_TIME = "import pathlib; again = pathlib.Path({!r}); first = not again.exists(); again.touch()"


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        ("beat(0.2); sys.exit(3)", "exited", "exit status 3 (exited); it is replaced"),
        ("beat(0.2); os.kill(os.getpid(), 11)", "killed", "killed by SIGSEGV (killed)"),
        ("beat(0.2); os.kill(os.getpid(), signal.SIGSTOP)", "silent", "(it is stopped"),
        ("beat(0.2); time.sleep(100)", "silent", "gave no sign of life for 1 s (it waits)"),
        ("beat(0.2); time.sleep(100)", "silent", "printed: Current thread 0x"),
        ("beat(99, State.STUCK)", "stuck", "says that only a restart helps"),
    ],
)
def test_a_worker_that_fails_is_named_counted_and_replaced(log, tmp_path, script, reason, said):
    first = FIRST_TIME.format(str(tmp_path / "again"))
    run = Run(f"{first}\nif first:\n    {script}\nbeat()")
    run.until(replaced(reason))
    assert run.board.replaced() == {name: int(name == reason) for name in run.board.replaced()}
    assert said in log.text


def test_a_worker_that_does_not_come_up_is_replaced(log, monkeypatch):
    monkeypatch.setattr(module, "START_S", 0.3)
    Run("time.sleep(100)").until(lambda run: run.board.replaced()["start"] >= 1)
    assert "(start); it is replaced" in log.text


def test_a_machine_that_slept_is_no_fault_of_its_workers(log, monkeypatch):
    monkeypatch.setattr(module, "LATE_S", -1.0)
    began = time.monotonic()
    run = Run("beat(0.1); time.sleep(100)")
    run.until(lambda run: all_ready(run) and time.monotonic() - began > 3.0)
    assert sum(run.board.replaced().values()) == 0


def test_a_crash_loop_ends_the_server_with_a_message(log, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.1)
    run = Run("sys.exit('no such library')")
    assert run.until(lambda _: False) == 1
    assert run.board.replaced()["exited"] == module.MOST_SHORT_LIVES
    assert "5 workers in a row lived shorter than 20 s: the server gives up" in log.text
    assert "printed: no such library" in log.text


def test_what_does_not_end_is_killed_after_the_drain(log):
    run = Run("signal.signal(signal.SIGTERM, signal.SIG_IGN); beat()", drain_s=0.3)
    family: list[psutil.Process] = []

    def ready(run: Run) -> bool:
        family[:] = run.workers()
        return all_ready(run)

    assert run.until(ready) == 0
    assert "did not end within 0.3 s" in log.text
    assert not any(one.is_running() for one in family)


def test_a_stopped_worker_is_woken_to_end(log, monkeypatch):
    monkeypatch.setattr(module, "SILENT_S", 100.0)
    end = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    run = Run(f"{end}; beat(0.1); os.kill(os.getpid(), signal.SIGSTOP); beat()", drain_s=10.0)

    def stopped(run: Run) -> bool:
        workers = run.workers()
        return all_ready(run) and all(one.status() == psutil.STATUS_STOPPED for one in workers)

    assert run.until(stopped) == 0
    assert "did not end" not in log.text


SERVER = """
import asyncio, sys
from service.observe.worker_board import WorkerBoard
from service.server.supervisor import Supervisor
board = WorkerBoard.make(1)
command = [sys.executable, "-c", sys.argv[1], str(board.descriptor), "0"]
asyncio.run(Supervisor(lambda slot: command, board=board, descriptors=(board.descriptor,),
                       drain_s=1.0, close_port=lambda: None).run())
"""
BOUND = """
import ctypes, os, sys
from service.server.process import end_with_parent
end_with_parent(os.getppid())
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_goes_with_its_supervisor_even_if_it_is_stopped(tmp_path: Path, stopped: bool):
    ready = tmp_path / "ready"
    script = WORKER + BOUND + f"open({str(ready)!r}, 'w').close()\nbeat()"
    process = subprocess.Popen([sys.executable, "-c", SERVER, script])
    try:
        began = time.monotonic()
        while not ready.exists():
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0.02)
        (worker,) = psutil.Process(process.pid).children()
        if stopped:
            worker.suspend()
            while worker.status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.02)


def test_a_worker_whose_supervisor_died_before_it_could_ask_ends_at_once():
    command = [sys.executable, "-m", "service.server.process", "--supervisor=1", "--slot=0"]
    began = time.monotonic()
    done = subprocess.run([*command, "--board=9", "--log=2"], check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert time.monotonic() - began < PATIENCE_S


def test_a_status_is_named():
    assert ended_by(3) == "exit status 3"
    assert ended_by(-9) == "killed by SIGKILL"
    assert ended_by(-40) == "killed by signal 40"


def test_a_worker_that_cannot_be_started_counts_as_one_that_ended(log, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.1)
    run = Run("beat()")
    run.supervisor._command = lambda _: ["/no/such/python"]
    assert run.until(lambda _: False) == 1
    assert run.board.replaced()["start"] == module.MOST_SHORT_LIVES
    assert "worker 1 cannot be started: [Errno 2] No such file or directory" in log.text
