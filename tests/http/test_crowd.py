"""Connections that give nothing take nothing: with thousands of them, others are answered as
before.
"""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.http.server import ANSWER_PATIENCE_S, Server, read_all, serving

SILENT, SLOW_HEADS, SLOW_BODIES = 2000, 500, 500
STRETCH_S = 14.0
"""Long enough for each kind to run into its limit, and to come again."""
ENDLESS_MB = 20


async def measured(
    port: int, photo: bytes, *, seconds: float
) -> tuple[list[float], list[float], set[int]]:
    """Times of classifications and probes of two usual clients, each on new connections and on a
    kept one, and their statuses.
    """
    classify_s: list[float] = []
    probe_s: list[float] = []
    statuses: set[int] = set()
    limits = httpx.Limits(max_keepalive_connections=0)
    until = time.monotonic() + seconds
    async with (
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=ANSWER_PATIENCE_S
        ) as kept,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            trust_env=False,
            timeout=ANSWER_PATIENCE_S,
            limits=limits,
        ) as fresh,
    ):
        while time.monotonic() < until:
            for client in (kept, fresh):
                began = time.monotonic()
                statuses.add((await client.post("/v1/classify", content=photo)).status_code)
                classify_s.append(time.monotonic() - began)
                began = time.monotonic()
                statuses.add((await client.get("/livez")).status_code)
                probe_s.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
    return classify_s, probe_s, statuses


def describe(name: str, seconds: list[float]) -> str:
    p50, p99, most = np.percentile(seconds, [50, 99, 100]) * 1000
    return f"{name}: {len(seconds)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {most:.1f} ms"


@contextmanager
def lone(folder: Path, store: Path):
    with serving(folder, store=store) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


@contextmanager
def dawdlers(port: int):
    """The crowd, in its own process: its work must not count as the service's time."""
    command = [
        sys.executable,
        "-m",
        "tests.http.dawdlers",
        *map(str, (port, SILENT, SLOW_HEADS, SLOW_BODIES)),
    ]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as crowd:
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == b"all connected\n"
            yield
            assert crowd.poll() is None
        finally:
            crowd.kill()


@pytest.mark.slow
def test_thousands_that_dawdle_hold_up_nobody(tmp_path: Path, store: Path, photo: bytes):
    with lone(tmp_path, store) as server:
        (worker,) = server.workers()
        before_mb = worker.memory_info().rss / 2**20
        alone = asyncio.run(measured(server.port, photo, seconds=STRETCH_S / 2))
        with dawdlers(server.port):
            among = asyncio.run(measured(server.port, photo, seconds=STRETCH_S))
        after_mb = worker.memory_info().rss / 2**20
        for name, (classify_s, probe_s, statuses) in {
            "alone": alone,
            "in the crowd": among,
        }.items():
            print(  # noqa: T201 - the measurement, for a person
                describe(f"classify {name}", classify_s),
                describe(f"probe {name}", probe_s),
                statuses,
                sep="\n",
            )
        print(f"memory {before_mb:.0f} -> {after_mb:.0f} MB")  # noqa: T201 - the measurement
        assert alone[2] == among[2] == {200}
        assert max(among[0] + among[1]) < 2.0
        assert np.median(among[1]) < 0.1
        assert after_mb - before_mb < 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "opening",
    [b"GET /livez HTTP/1.1\r\nX-Big: ", b"GET /livez HTTP/1.1\r\n", b"GET /"],
    ids=["field", "fields", "target"],
)
def test_a_head_without_end_costs_nothing(tmp_path: Path, store: Path, opening: bytes):
    """It stalled a worker: 100 % of a core, and 310 MB in two minutes."""
    more = (b"X: y\r\n" if opening.endswith(b"\n") else b"xxxxxx") * 10_000
    with lone(tmp_path, store) as server:
        (worker,) = server.workers()
        before, memory = sum(worker.cpu_times()[:2]), worker.memory_info().rss
        with server.connect() as connection:
            connection.sendall(opening)
            try:
                for _ in range(ENDLESS_MB * 2**20 // len(more)):
                    connection.sendall(more)
                answer = read_all(connection)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        assert (
            answer == b""
            or json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"
        )
        began = time.monotonic()
        assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
        assert time.monotonic() - began < 1.0
        assert sum(worker.cpu_times()[:2]) - before < 1.0
        assert worker.memory_info().rss - memory < 10 * 2**20


@pytest.mark.slow
def test_few_descriptors_are_enough_for_probes(tmp_path: Path, store: Path, photo: bytes):
    """As where the hard limit is low: a flood of connections takes no probe's place, and is told of
    once.
    """
    with serving(tmp_path, store=store, open_files=256) as server:
        (worker,) = server.workers()
        soft, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard == 256
        flood(server, photo)
        assert server.stop() == 0
    assert server.log.count("raise the limit (ulimit -n)") == 1
    assert "Traceback" not in server.log


def flood(server: Server, photo: bytes) -> None:
    connections = []
    try:
        for _ in range(600):
            connections.append(server.connect())
            if len(connections) % 50 == 0:
                assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
                assert (
                    httpx.post(
                        f"{server.url}/v1/classify", content=photo, trust_env=False
                    ).status_code
                    == 200
                )
    finally:
        for connection in connections:
            connection.close()
