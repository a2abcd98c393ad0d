"""`/livez` and `/readyz`: for machines by their status, for people by their body.

Workers share a port, so a probe reaches any of them. Its status is that of the worker that
answers; the body says how the others are. While the server ends, no worker is ready.
"""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from models.errors import NotReady
from service.observe.worker_board import State, WorkerBoard
from service.rollout.worker import Worker
from service.server.shutdown import Ending

_NO_STORE = {"cache-control": "no-store"}


class Probes:
    """ASGI application for GET and HEAD of the probes. *board* is None without our supervisor."""

    def __init__(self, worker: Worker, ending: Ending, board: WorkerBoard | None) -> None:
        self._worker = worker
        self._ending = ending
        self._board = board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one probe."""
        of_life = scope["path"] in ("/livez", "/healthz")
        fault = self._why_dead() if of_life else self._why_not_ready()
        first = fault or ("alive" if of_life else "ready")
        body = f"{first}\n" + ("" if self._board is None else f"{describe(self._board)}\n")
        response: Response = PlainTextResponse(body, 503 if fault else 200, headers=_NO_STORE)
        await response(scope, receive, send)

    def _why_dead(self) -> str:
        if self._worker.is_alive():
            return ""
        return "this worker no longer follows its models; only a restart helps"

    def _why_not_ready(self) -> str:
        if self._ending.begun or (self._board is not None and self._board.ending):
            return "not ready: the service is about to end; send requests to another instance"
        try:
            self._worker.served()
        except NotReady as error:
            return f"not ready: {error}"
        return ""


def describe(board: WorkerBoard) -> str:
    """How the workers of the server are, in a line for people."""
    states = board.states()
    rest = ", ".join(
        f"{number} {state.name.lower().replace('_', ' ')}"
        for state, number in states.items()
        if number and state is not State.READY
    )
    replaced = {reason: number for reason, number in board.replaced().items() if number}
    since = ", ".join(f"{number} {reason}" for reason, number in replaced.items()) or "none"
    ready = f"workers: {states[State.READY]} of {board.workers} ready"
    return f"{ready}{', ' if rest else ''}{rest}; replaced since the start: {since}"
