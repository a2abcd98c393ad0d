"""The contenders: each runs as its own processes on loopback, with the same ONNX file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from benchmarks.serving.answers import OK
from benchmarks.serving.load import Request as WireRequest
from benchmarks.serving.load import ask, closed_loop, shuffled
from benchmarks.serving.peers.pipeline import MODEL_VARIABLE
from benchmarks.serving.photos import numbered, post, post_form, post_json
from benchmarks.serving.processes import awake, cpu_s, end, family, pause
from tests.http.server import environment, free_port, serving

START_PATIENCE_S = 60.0
POLL_S = 0.2
LOOP = "loop without a server"


@dataclass(frozen=True)
class Measured:
    """One contender in one round, at saturation."""

    per_second: float
    """Photos answered with 200."""
    cpu_ms: float
    """CPU time of all its processes for each of them, without the load generator."""
    counts: Mapping[str, int]
    generator_us: float
    """CPU time of the load generator for each request, in microseconds."""


@dataclass(frozen=True)
class Contender:
    """A started server; paused unless it is being measured."""

    name: str
    pid: int
    port: int
    requests: list[WireRequest]

    def measure(self, *, seconds: float, concurrency: int, seed: int) -> Measured:
        """Throughput at saturation."""
        with awake(self.pid):
            before_s = cpu_s(family(self.pid))
            run = closed_loop(
                self.port,
                shuffled(self.requests, seed=seed),
                concurrency=concurrency,
                seconds=seconds,
            )
            spent_s = cpu_s(family(self.pid)) - before_s
        answered = max(1, sum(answer.status == OK for answer in run.answers))
        return Measured(
            run.per_second(), 1000.0 * spent_s / answered, run.counts(), run.cpu_us_per_request
        )

    def top1(self, count: int) -> list[int]:
        """Likeliest class of each of the first *count* photos.

        Raises `SystemExit` for a status other than 200.
        """
        with awake(self.pid):
            answers = ask(self.port, self.requests[:count])
        wrong = [(status, body[:300]) for status, body in answers if status != OK]
        if wrong:
            raise SystemExit(
                f"{self.name}: {len(wrong)} of {count} photos got no answer, the first: {wrong[0]}"
            )
        return [top1_of(body) for _, body in answers]


@dataclass(frozen=True)
class Loop:
    """The pipeline without a server, measured through its standard input."""

    process: subprocess.Popen[str]
    name: str = LOOP

    def measure(self, *, seconds: float, concurrency: int, seed: int) -> Measured:
        """Throughput. It warms up at its start and chooses its own order."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before_s = cpu_s(family(self.process.pid))
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        rate = json.loads(self.process.stdout.readline())["per_second"]
        spent_s = cpu_s(family(self.process.pid)) - before_s
        return Measured(rate, 1000.0 * spent_s / (rate * seconds), {}, 0.0)


def top1_of(body: bytes) -> int:
    """Index of the likeliest class in an answer of any contender."""
    index: int = json.loads(body)["predictions"][0]["index"]
    return index


@contextmanager
def loupe(
    folder: Path, *, store: Path, photos: Sequence[bytes], workers: int, **settings: object
) -> Iterator[Contender]:
    """`loupe serve` of the only model in *store*, paused."""
    folder.mkdir()
    with serving(folder, store=store, workers=workers, **settings) as server:
        requests = numbered([post("/v1/classify", photo, port=server.port) for photo in photos])
        pause(server.process.pid)
        try:
            yield Contender(
                f"Loupe, {workers} worker{'s' if workers > 1 else ''}",
                server.process.pid,
                server.port,
                requests,
            )
        finally:
            end(server.process.pid)


@contextmanager
def peer(name: str, folder: Path, *, model: Path, photos: Sequence[bytes]) -> Iterator[Contender]:
    """The peer *name* of `PEERS`, paused once it has answered a photo."""
    folder.mkdir()
    port = free_port()
    command, make = PEERS[name](port)
    requests = numbered(
        [
            make("/classify" if name != LITSERVE else "/predict", photo, port=port)
            for photo in photos
        ]
    )
    with _process(command, folder, model=model) as process:
        _wait_for_answer(name, process, port, requests[0], folder / "log")
        pause(process.pid)
        yield Contender(name, process.pid, port, requests)


@contextmanager
def loop(folder: Path, *, model: Path, package: Path, data: Path) -> Iterator[Loop]:
    """The pipeline without a server, ready."""
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.loop",
        *map(str, (model.resolve(), package.resolve(), data.resolve())),
    ]
    with _process(
        command, folder, model=model, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(
                "the loop did not"
                f" start:\n{(folder / 'log').read_text(encoding='utf-8', errors='replace')}"
            )
        yield Loop(process)


FASTAPI, LITSERVE, BENTOML = (
    "FastAPI + ORT, 2 workers",
    "LitServe, batching, 2 workers",
    "BentoML, depends + batchable",
)
Make = Callable[..., bytes]


def _fastapi(port: int) -> tuple[list[str], Make]:
    application = "benchmarks.serving.peers.fastapi_app:app"
    options = ["--workers", "2", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", application, *options], post


def _litserve(port: int) -> tuple[list[str], Make]:
    return [sys.executable, "-m", "benchmarks.serving.peers.litserve_app", str(port)], post_json


def _bentoml(port: int) -> tuple[list[str], Make]:
    service = "benchmarks.serving.peers.bentoml_app:Classifier"
    return [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        service,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--working-dir",
        str(ROOT),
    ], post_form


PEERS: Mapping[str, Callable[[int], tuple[list[str], Make]]] = {
    FASTAPI: _fastapi,
    LITSERVE: _litserve,
    BENTOML: _bentoml,
}


@contextmanager
def _process(
    command: Sequence[str], folder: Path, *, model: Path, **pipes: Any
) -> Iterator[subprocess.Popen[Any]]:
    """*command* in its own environment with its log in *folder*.

    At the end all its processes are ended.
    """
    private = {
        MODEL_VARIABLE: str(model.resolve()),
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with (folder / "log").open("wb") as log:
        pipes = {"stdout": log, "stderr": log, **pipes}
        process = subprocess.Popen(command, cwd=folder, env=environment(folder) | private, **pipes)
    try:
        yield process
    finally:
        end(process.pid)
        # Waits for it, and closes its pipes.
        with process:
            pass


def _wait_for_answer(
    name: str, process: subprocess.Popen[Any], port: int, request: WireRequest, log: Path
) -> None:
    begun_s = time.monotonic()
    while ask(port, [request])[0][0] != OK:
        if process.poll() is not None or time.monotonic() - begun_s > START_PATIENCE_S:
            raise SystemExit(
                f"{name} does not answer (exit status"
                f" {process.poll()}):\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            )
        time.sleep(POLL_S)
