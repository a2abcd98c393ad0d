"""The worker's end of the inspecting process.

Why a process: ONNX Runtime holds the GIL while it opens a session (microsoft/onnxruntime#27063).
For ResNet-50 every request would wait a quarter of a second. And a process can be ended at a
deadline, which a thread cannot.

The process starts with the first request and ends after a minute without one. It has the lowest
priority and one thread. It takes its requests from a pipe, so that it ends with its worker.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from models import errors
from models.errors import DeadlineExceeded, LoupeError, NotReady, QueueFull

PROCESS = "service.inspection"
WAITING_MAX = 4
"""Requests of one worker that may wait for the one that runs."""
IDLE_S = 60.0
"""After so long without a request, the process ends and its memory is free."""
STARTS_IN_S = 1.0
"""Assumed time of a request until the first is measured."""


class Inspector:
    """Asks the process one thing at a time. For one event loop."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._request_s = STARTS_IN_S
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    def admit(self) -> None:
        """Raises `QueueFull` if no more requests may wait. Called before a body is read, too."""
        if self._waiting > WAITING_MAX:
            wait_s = self._waiting * self._request_s
            raise QueueFull(
                f"{self._waiting} requests to look inside wait or run already, the most allowed;"
                f" try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )

    async def ask(
        self, request: Mapping[str, object], image: bytes = b"", *, deadline: float
    ) -> bytes:
        """The JSON document for *request* about *image*.

        *deadline* is on the clock of `time.monotonic`. Raises `QueueFull`, `DeadlineExceeded`,
        `NotReady` if the process ended meanwhile, and what the process raised. A caller that is
        cancelled ends the process if it runs for this request.
        """
        self.admit()
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()), self._turn:
                return await self._exchange(request, image)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the network was not inspected before the request's deadline", retry_after_s=1.0
            ) from error
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        await self._end()

    async def _exchange(self, request: Mapping[str, object], image: bytes) -> bytes:
        started = time.monotonic()
        if self._idle is not None:
            self._idle.cancel()
        complete = False
        try:
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            head = json.dumps({**request, "image_bytes": len(image)})
            process.stdin.write(head.encode("ascii") + b"\n" + image)
            await process.stdin.drain()
            answer = json.loads(await process.stdout.readline() or b"null")
            if answer is None:
                raise ConnectionResetError
            body = await process.stdout.readexactly(answer["bytes"])
            complete = True
        except (OSError, asyncio.IncompleteReadError) as error:
            raise NotReady(
                "the process that looks inside the network ended, perhaps for lack of memory; try"
                " again",
                retry_after_s=1.0,
            ) from error
        finally:
            if not complete:
                # Nobody knows what it would answer next.
                await self._end()
        self._request_s += 0.2 * (time.monotonic() - started - self._request_s)
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._idle_s, self._end_idle)
        if "error" in answer:
            raise _error_of(answer["error"], body.decode())
        return body

    async def _started(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise NotReady("the service is shutting down", retry_after_s=1.0)
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                PROCESS,
                # Where `service` is found, installed or not.
                cwd=Path(__file__).parents[2],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        return self._process

    def _end_idle(self) -> None:
        if not self._turn.locked() and self._process is not None:
            process, self._process = self._process, None
            with suppress(ProcessLookupError):
                process.kill()

    async def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            # Shielded: a client that left must not leave a process that nobody waits for.
            await asyncio.shield(process.wait())


def _error_of(name: str, message: str) -> LoupeError:
    """The error that the process raised, by the name of its class."""
    kind = getattr(errors, name, LoupeError)
    assert issubclass(kind, LoupeError)
    return kind(message)
