"""What the probes say to machines and to people."""

import asyncio

import httpx
import pytest

from models.errors import NotReady
from service.observe.worker_board import State, WorkerBoard
from service.server.probes import Probes, describe
from service.server.shutdown import Ending


class StandIn:
    """A worker that is as it is told to be."""

    def __init__(self, *, alive: bool = True, fault: str = "") -> None:
        self.alive, self.fault = alive, fault

    def is_alive(self) -> bool:
        return self.alive

    def served(self) -> list[object]:
        if self.fault:
            raise NotReady(self.fault)
        return []


@pytest.fixture
def board() -> WorkerBoard:
    made = WorkerBoard.make(3)
    for slot, state in enumerate([State.READY, State.READY, State.STARTING]):
        made.write(slot, state)
    return made


def ask(path: str, worker: StandIn, board: WorkerBoard | None) -> httpx.Response:
    transport = httpx.ASGITransport(app=Probes(worker, Ending(), board))

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_the_body_says_how_all_workers_are(board):
    board.count("silent")
    answer = ask("/readyz", StandIn(), board)
    assert (answer.status_code, answer.text) == (
        200,
        "ready\nworkers: 2 of 3 ready, 1 starting; replaced since the start: 1 silent\n",
    )
    assert answer.headers["cache-control"] == "no-store"


def test_a_refused_model_is_not_ready_and_alive(board):
    worker = StandIn(fault="the model was refused: its hash is wrong")
    answer = ask("/readyz", worker, board)
    assert answer.status_code == 503
    assert answer.text.startswith("not ready: the model was refused: its hash is wrong\nworkers: ")
    assert ask("/livez", worker, board).status_code == 200
    assert ask("/healthz", worker, board).text.startswith("alive\n")


def test_only_what_a_restart_helps_is_not_alive(board):
    assert ask("/livez", StandIn(alive=False), board).status_code == 503


def test_no_worker_is_ready_once_the_server_ends(board):
    board.end()
    assert "about to end" in ask("/readyz", StandIn(), board).text
    assert ask("/livez", StandIn(), board).status_code == 200


def test_without_a_board_a_worker_speaks_for_itself():
    assert ask("/readyz", StandIn(), None).text == "ready\n"


def test_the_metrics_are_those_of_the_board(board):
    board.count("killed")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in board.metrics()
        for sample in metric.samples
    }
    assert found["loupe_workers", "ready"] == 2.0
    assert found["loupe_worker_restarts_total", "killed"] == 1.0
    assert found["loupe_worker_restarts_total", "silent"] == 0.0
    assert describe(board).endswith("since the start: 1 killed")
