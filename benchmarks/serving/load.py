"""A load generator on raw sockets: a closed loop for saturation, an open loop for latency.

It shares its cores with the server that it measures, so it is as cheap as Python allows. Requests
are bytes that were built before. Of an answer only status and length are read. `Run.cpu_s` is its
own CPU time. In the open loop a request counts from the moment it was due, even if no connection
was free. A server that stalls cannot hide the requests that it delayed (coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import uvloop

from benchmarks.serving.answers import UNANSWERED, Answer, Run

HOST = "127.0.0.1"
"""The only address that gets load."""
MOST_REQUESTS = 1_000_000
MOST_CONNECTIONS = 1024
PATIENCE_S = 30.0
"""Longest wait for answers after the last request was sent."""
IDLE_LIMIT_S = 2.0
"""A longer idle connection is replaced: if the server closes it now, that looks like a failure."""
RETRY_S = 0.01
"""Pause of a client of the closed loop whose connection broke."""
STAGGER_S = 0.005
"""Time between the first requests of two clients.

Otherwise the first worker to wake would accept most connections."""
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class Request(NamedTuple):
    """A request as bytes, and the index of its photo."""

    index: int
    wire: bytes


Inspect = Callable[[int, int, bytes], None]
"""Called with index, status and body of each answer."""


def shuffled(requests: Sequence[Request], *, seed: int) -> Iterator[Request]:
    """*requests* without end: all of them in random order, then all in another order."""
    rng = np.random.default_rng(seed)
    while True:
        for position in rng.permutation(len(requests)):
            yield requests[position]


def arrivals_s(rate: float, seconds: float, *, seed: int, even: bool = False) -> list[float]:
    """Times at which requests are due: *rate* a second for *seconds*.

    They are random (a Poisson process) or *even*.
    """
    count = int(rate * seconds)
    if not 0 < count <= MOST_REQUESTS:
        raise ValueError(
            f"{rate:g} requests a second for {seconds:g} s are {count} requests; expected 1 to"
            f" {MOST_REQUESTS:,}"
        )
    if even:
        return [number / rate for number in range(count)]
    # Given their number, the arrivals of a Poisson process are uniform.
    return sorted(np.random.default_rng(seed).uniform(0.0, seconds, count).tolist())


def closed_loop(
    port: int,
    requests: Iterator[Request],
    *,
    concurrency: int,
    seconds: float,
    warm_s: float = 0.5,
    inspect: Inspect | None = None,
) -> Run:
    """As many requests as the server answers, *concurrency* at a time, after *warm_s*."""
    return _in_loop(
        _Generator(port, requests, connections=concurrency, inspect=inspect).closed(
            concurrency, seconds, warm_s
        )
    )


def open_loop(
    port: int,
    requests: Iterator[Request],
    *,
    offsets_s: Sequence[float],
    connections: int = 256,
    inspect: Inspect | None = None,
) -> Run:
    """Requests at *offsets_s* from now, whatever the server does.

    More than *connections* at once wait, and their wait counts.
    """
    return _in_loop(
        _Generator(port, requests, connections=connections, inspect=inspect).open(offsets_s)
    )


def ask(port: int, requests: Sequence[Request], *, concurrency: int = 8) -> list[tuple[int, bytes]]:
    """Status and body for each of *requests*, in order."""
    found: dict[int, tuple[int, bytes]] = {}
    generator = _Generator(
        port,
        iter([Request(position, request.wire) for position, request in enumerate(requests)]),
        connections=concurrency,
        inspect=lambda position, status, body: found.__setitem__(position, (status, body)),
    )
    _in_loop(generator.open([0.0] * len(requests)))
    return [found.get(position, (UNANSWERED, b"")) for position in range(len(requests))]


class _Connection(asyncio.Protocol):
    """A keep-alive connection that carries one request at a time."""

    def __init__(self) -> None:
        self.rested_s = time.perf_counter()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @property
    def usable(self) -> bool:
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and time.perf_counter() - self.rested_s < IDLE_LIMIT_S
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = self._answer
        if answer is None or answer.done():
            return
        end = self._received.find(_HEAD_END)
        if end < 0:
            return
        length = _CONTENT_LENGTH.search(self._received, 0, end)
        if length is None:
            answer.set_exception(
                ValueError(f"an answer without Content-Length: {self._received[:end]!r}")
            )
            return
        body = end + len(_HEAD_END)
        if len(self._received) >= body + int(length[1]):
            answer.set_result((int(self._received[9:12]), self._received[body:]))
            self._received = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                ConnectionResetError("the server closed the connection without an answer")
            )

    async def ask(self, wire: bytes) -> tuple[int, bytes]:
        """Status and body. Raises `ConnectionError` if the connection breaks."""
        if self._transport is None:
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        try:
            return await self._answer
        finally:
            self.rested_s = time.perf_counter()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class _Generator:
    port: int
    requests: Iterator[Request]
    connections: int
    inspect: Inspect | None = None
    _answers: list[Answer] = field(default_factory=list)
    _idle: list[_Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise ValueError(
                f"{self.connections} connections asked for; expected 1 to {MOST_CONNECTIONS}"
            )
        self._slots = asyncio.Semaphore(self.connections)

    async def closed(self, concurrency: int, seconds: float, warm_s: float) -> Run:
        cpu_s, begun_s = time.process_time(), time.perf_counter() + warm_s
        ended_s = begun_s + seconds

        async def client(number: int) -> None:
            await asyncio.sleep(number * STAGGER_S)
            while time.perf_counter() < ended_s and len(self._answers) < MOST_REQUESTS:
                if not await self._ask(time.perf_counter()):
                    await asyncio.sleep(RETRY_S)

        await self._finish(
            {asyncio.create_task(client(number)) for number in range(concurrency)},
            patience_s=warm_s + seconds + PATIENCE_S,
        )
        return Run(self._answers, begun_s, ended_s, time.process_time() - cpu_s)

    async def open(self, offsets_s: Sequence[float]) -> Run:
        if len(offsets_s) > MOST_REQUESTS:
            raise ValueError(
                f"{len(offsets_s):,} requests asked for; expected at most {MOST_REQUESTS:,}"
            )
        cpu_s, begun_s = time.process_time(), time.perf_counter()
        under_way: set[asyncio.Task[Any]] = set()
        for offset_s in offsets_s:
            early_s = begun_s + offset_s - time.perf_counter()
            if early_s > 0:
                await asyncio.sleep(early_s)
            # uvloop's timers have a resolution of a millisecond, and may be early by as much.
            task = asyncio.create_task(self._ask(min(begun_s + offset_s, time.perf_counter())))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        ended_s = max(time.perf_counter(), begun_s + 1e-9)
        await self._finish(set(under_way), patience_s=PATIENCE_S)
        return Run(self._answers, begun_s, ended_s, time.process_time() - cpu_s)

    async def _ask(self, due_s: float) -> bool:
        """Send one request and record the result. Whether there was an answer."""
        sent_s, status, index, body = due_s, UNANSWERED, -1, b""
        connection: _Connection | None = None
        try:
            async with self._slots:
                connection = await self._connection()
                index, wire = next(self.requests)
                sent_s = time.perf_counter()
                status, body = await connection.ask(wire)
                self._idle.append(connection)
        except ConnectionError:
            pass
        finally:
            self._answers.append(Answer(due_s, sent_s, time.perf_counter(), status, index))
        if self.inspect is not None:
            self.inspect(index, status, body)
        return status != UNANSWERED

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        _, fresh = await asyncio.get_running_loop().create_connection(_Connection, HOST, self.port)
        return fresh

    async def _finish(self, tasks: set[asyncio.Task[Any]], *, patience_s: float) -> None:
        if tasks:
            done, late = await asyncio.wait(tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                task.result()  # raises our own faults; only ConnectionError is expected
        for connection in self._idle:
            connection.close()


def _in_loop(run: Coroutine[Any, Any, Run]) -> Run:
    with _no_collection(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within, the garbage collector is off.

    A full collection would stop the generator for a quarter of a second. Then all due requests
    would come at once, more than the queue of a server holds. Requests make no reference cycles.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
