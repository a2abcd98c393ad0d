"""The load generator against a tiny server of known behaviour on a real socket."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.serving.answers import OK, UNANSWERED, Answer, Run, percentiles_ms
from benchmarks.serving.load import (
    MOST_REQUESTS,
    Request,
    arrivals_s,
    ask,
    closed_loop,
    open_loop,
    shuffled,
)
from benchmarks.serving.photos import numbered, post

BODIES = [bytes([65 + number]) * (10 + 70_000 * number) for number in range(4)]


class Echo:
    """Answers the first byte of each body.

    Requests numbered in *broken* get a closed connection, those in *stalled* a late answer.
    """

    def __init__(
        self,
        *,
        broken: frozenset[int] = frozenset(),
        stalled: frozenset[int] = frozenset(),
        stall_s: float = 0.0,
    ) -> None:
        self.broken, self.stalled, self.stall_s = broken, stalled, stall_s
        self.received = 0
        self.at_once = self.most_at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                body = await reader.readexactly(length)
                number, self.received = self.received, self.received + 1
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                if number in self.broken:
                    self.at_once -= 1
                    return
                if number in self.stalled:
                    time.sleep(self.stall_s)  # noqa: ASYNC251 - the whole server stands still, as one does that collects garbage
                await asyncio.sleep(0)
                self.at_once -= 1
                status = b"200 OK" if body[:1] != b"D" else b"503 Busy"
                # In two pieces, as a body may come.
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 9\r\n\r\nfirst")
                await writer.drain()
                writer.write(b"=" + body[:1] + b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def running(echo: Echo) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(echo.serve, "127.0.0.1", 0, limit=1 << 20)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def requests(port: int, bodies: list[bytes] = BODIES) -> list[Request]:
    return numbered([post("/", body, port=port) for body in bodies])


def test_each_request_gets_its_own_answer_in_order():
    with running(Echo()) as port:
        asked = requests(port)
        answers = ask(port, [asked[number] for number in (2, 0, 3, 1, 0)], concurrency=2)
    assert answers == [
        (200, b"first=C\r\n"),
        (200, b"first=A\r\n"),
        (503, b"first=D\r\n"),
        (200, b"first=B\r\n"),
        (200, b"first=A\r\n"),
    ]


def test_a_closed_loop_keeps_its_concurrency_and_counts_all_requests():
    echo = Echo()
    seen = []
    with running(echo) as port:
        run = closed_loop(
            port,
            shuffled(requests(port), seed=0),
            concurrency=3,
            seconds=0.3,
            warm_s=0.1,
            inspect=lambda index, status, body: seen.append((index, status, body)),
        )
    assert echo.received == len(run.answers) == len(seen)
    assert echo.most_at_once <= 3
    assert all(body == b"first=" + BODIES[index][:1] + b"\r\n" for index, _, body in seen)
    counts = run.counts()
    assert counts.keys() == {"200", "503"}
    # Each epoch has three answered bodies and one refused; the clients do not keep step, and the
    # edges of the interval cut some.
    assert counts["200"] == pytest.approx(3 * counts["503"], rel=0.05)
    assert run.per_second() == pytest.approx(counts["200"] / 0.3, rel=0.2)
    assert 0 < run.cpu_us_per_request < 1e6


def test_the_garbage_collector_is_off_only_during_the_load():
    with running(Echo()) as port:
        seen = []
        open_loop(
            port,
            shuffled(requests(port), seed=0),
            offsets_s=[0.0] * 4,
            inspect=lambda *_: seen.append(gc.isenabled()),
        )
    assert seen == [False] * 4
    assert gc.isenabled()


def test_an_open_loop_sends_exactly_the_due_requests():
    echo = Echo()
    with running(echo) as port:
        offsets_s = arrivals_s(200.0, 0.5, seed=3)
        run = open_loop(port, shuffled(requests(port, BODIES[:1]), seed=0), offsets_s=offsets_s)
    assert len(offsets_s) == 100 == echo.received
    assert run.counts() == {"200": 100}
    due_s = np.array(sorted(answer.due_s for answer in run.answers)) - run.begun_s
    assert due_s == pytest.approx(np.array(offsets_s), abs=2e-3)  # a timer's resolution, twice
    assert all(answer.due_s <= answer.sent_s <= answer.done_s for answer in run.answers)


def test_a_stall_counts_for_all_requests_that_were_due_in_it():
    """With one connection and a stall of 0.3 s, a waiting generator would see one slow answer."""
    with running(Echo(stalled=frozenset({10}), stall_s=0.3)) as port:
        run = open_loop(
            port,
            shuffled(requests(port, BODIES[:1]), seed=0),
            offsets_s=arrivals_s(100.0, 0.6, seed=0, even=True),
            connections=1,
        )
    assert int((run.latencies_ms(since="sent") > 100.0).sum()) == 1
    # Due at 10 ms intervals during 300 ms, the later ones with less to wait; the rest of the queue
    # is worked off quickly.
    assert int((run.latencies_ms() > 100.0).sum()) >= 15


def test_a_broken_connection_costs_one_answer_only():
    with running(Echo(broken=frozenset({1, 4}))) as port:
        run = open_loop(
            port,
            shuffled(requests(port, BODIES[:1]), seed=0),
            offsets_s=[0.05 * number for number in range(8)],
            connections=1,
        )
    assert run.counts() == {str(UNANSWERED): 2, str(OK): 6}


def test_a_missing_server_is_counted_and_not_flooded():
    with running(Echo()) as port:
        pass
    run = closed_loop(
        port, shuffled(requests(port), seed=0), concurrency=2, seconds=0.2, warm_s=0.0
    )
    assert run.counts().keys() == {str(UNANSWERED)}
    # A pause of 10 ms after each: 20 for each client, and what the edges add.
    assert 2 <= len(run.answers) <= 44


def test_photos_are_shuffled_again_after_each_pass():
    order = shuffled([Request(number, b"") for number in range(50)], seed=1)
    epochs = [[next(order).index for _ in range(50)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(50))


@pytest.mark.parametrize("even", [False, True])
def test_arrivals_match_the_rate_and_the_time(even):
    offsets_s = arrivals_s(1000.0, 2.0, seed=0, even=even)
    assert len(offsets_s) == 2000
    assert offsets_s == sorted(offsets_s)
    assert offsets_s[0] >= 0.0
    assert offsets_s[-1] < 2.0
    gaps_s = np.diff(offsets_s)
    # The gaps of a Poisson process have the spread of their mean; 2000 of them are within 10 % of
    # it.
    assert gaps_s.std() == pytest.approx(0.0 if even else gaps_s.mean(), abs=1e-9 if even else 1e-4)


def test_load_without_bounds_is_refused():
    with pytest.raises(
        ValueError,
        match=r"1e\+06 requests a second for 60 s are 60000000 requests; expected 1 to 1,000,000",
    ):
        arrivals_s(1e6, 60.0, seed=0)
    with pytest.raises(ValueError, match="are 0 requests"):
        arrivals_s(0.5, 1.0, seed=0)
    with pytest.raises(ValueError, match=f"expected at most {MOST_REQUESTS:,}"):
        open_loop(1, iter(()), offsets_s=[0.0] * (MOST_REQUESTS + 1))
    with pytest.raises(ValueError, match="5000 connections asked for; expected 1 to 1024"):
        closed_loop(1, iter(()), concurrency=5000, seconds=1.0)


def test_figures_are_of_the_measured_interval_alone():
    answers = [
        Answer(0.0, 0.5, 1.0, OK, 0),
        Answer(2.0, 2.5, 3.0, OK, 0),
        Answer(2.0, 3.0, 4.0, 503, 0),
        Answer(4.0, 5.0, 9.0, OK, 0),
    ]
    run = Run(answers, begun_s=2.0, ended_s=6.0, cpu_s=0.001)
    assert run.counts() == {"200": 2, "503": 1}
    assert run.per_second() == 0.25
    assert list(run.latencies_ms()) == [1000.0, 5000.0]
    assert list(run.latencies_ms(status=503, since="sent")) == [1000.0]
    assert run.cpu_us_per_request == pytest.approx(250.0)


def test_percentiles_are_those_of_all_values():
    found = percentiles_ms(np.arange(1001.0))
    assert found == pytest.approx(
        {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "greatest": 1000.0}
    )
    assert percentiles_ms(np.array([])) == {}
