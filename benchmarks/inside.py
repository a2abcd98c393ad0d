"""What explanations cost, and what looking inside costs the requests that only classify.

    .venv/bin/python -m benchmarks.inside [--network mobilenet_v3_small] [--classes 1000]
                                          [--rounds 5] [--requests 40] [--photos DIR] [--out FILE]

A server with one worker classifies photos from one client. Plain requests, heat maps as numbers and
as pictures, and embeddings alternate; the first explanation of the process is among them. Then two
clients classify without a pause, alternately with and without a third that asks for the feature
maps of one layer after the other. All times but p50 and p99 are CPU times of processes, so that
other work on the machine counts little. `--short` takes one round.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.packages import build_network_package
from benchmarks.record import (
    command,
    machine,
    results_file,
    shared_data,
    spread,
    versions,
    write,
)
from benchmarks.serving.photos import read_photos
from models.store.store import Store
from service.inspection.inspector import PROCESS

KINDS = {
    "plain": "",
    "grid": "?explain=grid",
    "overlay": "?explain=overlay",
    "embedding": "?embedding=true",
}
NAME, PATIENCE_S, HOT_S = "inspected", 120.0, 5.0
LAYERS = 12
"""Layers whose feature maps are asked for, spread over the network."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    photos = read_photos(options.photos, limit=20)
    with tempfile.TemporaryDirectory(prefix="loupe-inside-") as place:
        _publish(Path(place), options.network, options.classes)
        with _serving(Path(place)) as server:
            report: dict[str, Any] = {
                "command": command("inside", arguments),
                "machine": machine(),
                "versions": versions(),
                "network": options.network,
                "classes": options.classes,
                "explain": explain_costs(server, photos, options.rounds, options.requests),
                "looking": looking_costs(server, photos[0]),
                "hot_path": hot_path(server, photos, options.rounds),
            }
    for part in ("explain", "looking", "hot_path"):
        for name, found in report[part].items():
            print(
                f"{part:9} {name:26} {found['median']:9.3f}"
                f"  ({found['least']:.3f} to {found['greatest']:.3f})"
            )
    write(report, options.out)


class Server:
    """A server, and the CPU time of its worker and of what looks inside."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    @property
    def worker(self) -> psutil.Process:
        """The process that answers."""
        return self._child("service.server.process")

    @property
    def inspector(self) -> psutil.Process:
        """The process that looks inside."""
        return self._child(PROCESS)

    def classify(self, photo: bytes, query: str = "") -> dict[str, Any]:
        """The answer for *photo*."""
        answer = self.client.post(f"/v1/classify{query}", content=photo).raise_for_status()
        return dict(answer.json())

    def _child(self, module: str) -> psutil.Process:
        return next(
            one for one in self._process.children(recursive=True) if module in one.cmdline()
        )


def explain_costs(
    server: Server, photos: Sequence[bytes], rounds: int, requests: int
) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a plain request, and how many times as much the others cost."""
    files = itertools.cycle(photos)
    server.classify(next(files))
    first = _cpu_ms(server.worker, lambda: server.classify(photos[0], KINDS["grid"]))
    again = [
        _cpu_ms(server.worker, lambda: server.classify(photos[0], KINDS["grid"])) for _ in range(5)
    ]
    per_request: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, query in KINDS.items():
            spent = _cpu_ms(
                server.worker,
                lambda query=query: [server.classify(next(files), query) for _ in range(requests)],
            )
            per_request[kind].append(spent / requests)
    plain = per_request["plain"]
    return {
        "plain, ms": spread(plain),
        "first grid, ms": spread([first]),
        "later grid, ms": spread(again),
        **{
            f"{kind} / plain": spread([a / b for a, b in zip(values, plain, strict=True)])
            for kind, values in per_request.items()
            if kind != "plain"
        },
    }


def looking_costs(server: Server, photo: bytes) -> dict[str, dict[str, float]]:
    """CPU seconds of the process that looks inside, and its memory in MiB."""
    path = f"/v1/models/{NAME}/layers"
    layers = server.client.get(path).raise_for_status().json()["layers"]
    process = server.inspector
    start_s = _cpu_s(process)
    again_s = _cpu_ms(process, lambda: server.client.get(path)) / 1000.0
    maps = [
        _cpu_ms(process, lambda name=layer["name"]: _features(server, name, photo)) / 1000.0
        for layer in layers[:: max(1, len(layers) // LAYERS)]
    ]
    return {
        "layers, first, s": spread([start_s]),
        "layers, later, s": spread([again_s]),
        "maps of a layer, s": spread(maps),
        "memory, MiB": spread([process.memory_info().rss / 2**20]),
        "memory of worker, MiB": spread([server.worker.memory_info().rss / 2**20]),
    }


def hot_path(server: Server, photos: Sequence[bytes], rounds: int) -> dict[str, dict[str, float]]:
    """Two clients that classify, with and without one that looks inside meanwhile."""
    path = f"/v1/models/{NAME}/layers"
    names = [layer["name"] for layer in server.client.get(path).json()["layers"]]
    found: dict[str, list[dict[str, float]]] = {"quiet": [], "looked at": []}
    for _ in range(rounds):
        for phase, measured in found.items():
            measured.append(_phase(server, photos, names if phase == "looked at" else []))
    figures = {
        f"{phase}, {name}": spread([one[name] for one in phases])
        for phase, phases in found.items()
        for name in phases[0]
    }
    pairs = list(zip(found["looked at"], found["quiet"], strict=True))
    return figures | {
        f"{name}, ratio": spread([a[name] / b[name] for a, b in pairs])
        for name in ("p50, ms", "p99, ms", "cpu of a request, ms")
    }


def _phase(server: Server, photos: Sequence[bytes], layers: Sequence[str]) -> dict[str, float]:
    end = time.monotonic() + HOT_S
    times_ms: list[float] = []
    looks: list[int] = []

    def classify() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
            for photo in itertools.cycle(photos):
                began = time.monotonic()
                if began > end:
                    return
                client.post("/v1/classify", content=photo).raise_for_status()
                times_ms.append(1000.0 * (time.monotonic() - began))

    def look() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
            for name in itertools.cycle(layers):
                if time.monotonic() > end:
                    return
                query = {"layer": name}
                looks.append(
                    client.post("/v1/features", params=query, content=photos[0]).status_code
                )

    threads = [threading.Thread(target=classify) for _ in range(2)]
    threads += [threading.Thread(target=look)] if layers else []

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    spent_ms = _cpu_ms(server.worker, run)
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {
        "p50, ms": float(p50),
        "p99, ms": float(p99),
        "cpu of a request, ms": spent_ms / len(times_ms),
        "looks": float(len(looks)),
    }


def _features(server: Server, layer: str, photo: bytes) -> None:
    answer = server.client.post("/v1/features", params={"layer": layer}, content=photo)
    answer.raise_for_status()


def _cpu_ms(process: psutil.Process, work: Callable[[], object]) -> float:
    before_s = _cpu_s(process)
    work()
    return 1000.0 * (_cpu_s(process) - before_s)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _publish(place: Path, network: str, classes: int) -> None:
    package = build_network_package(place / "package", network=network, classes=classes)
    Store(place / "store").publish(package, name=NAME)


@contextmanager
def _serving(place: Path) -> Iterator[Server]:
    from tests.http.server import environment, free_port

    port = free_port()
    options = ["--port", str(port), "--store", str(place / "store"), "--workers", "1"]
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "loupe", "serve", *options],
            # On a busy machine the process of low priority waits long; its CPU time is the same.
            env=environment(place, log_sample=0.0, deadline_ms=120_000),
            stdout=log,
            stderr=log,
        )
    try:
        server = Server(psutil.Process(process.pid), port)
        _wait_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait_ready(server: Server) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if server.client.get("/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError("the server is not ready")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="mobilenet_v3_small")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="of each kind in a round")
    parser.add_argument("--photos", type=Path, default=shared_data())
    parser.add_argument("--out", type=Path, default=results_file("inside"))
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args(arguments)
    if options.short:
        options.rounds, options.requests = 1, 5
    return options


if __name__ == "__main__":
    main()
