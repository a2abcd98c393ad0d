"""Hours of mixed load in slices, in which memory, files and threads must not grow.

The load has photos, damaged and foreign files, other routes, and clients that disconnect.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.serving.answers import percentiles_ms
from benchmarks.serving.ground import Ground
from benchmarks.serving.load import HOST, Request, arrivals_s, closed_loop, open_loop, shuffled
from benchmarks.serving.pauses import pauses
from benchmarks.serving.photos import post
from benchmarks.serving.processes import Held, held
from benchmarks.serving.scenarios import SATURATING, serving_photos

SHARE_OF_SATURATION = 0.6
LONGEST_S = 24 * 3600.0
WARM_SHARE = 0.25
"""Share of the time in which caches and allocators fill, so it is not judged."""
GROWTH_LIMIT = 0.03
"""Allowed growth of resident memory from the first to the last quarter after the warm-up.

Allocators and the kernel alone cause as much.
"""
LEAVING_EVERY = 50
"""One client in this number disconnects in the middle of its body."""


def soak(
    ground: Ground, *, workers: int, seconds: float, slice_s: float, rate: float | None = None
) -> dict[str, Any]:
    """Mixed load for *seconds*, and the state of each worker after each slice.

    *rate* is in requests a second; by default 60 % of saturation.
    """
    if not slice_s <= seconds <= LONGEST_S:
        raise SystemExit(
            f"a soak of {seconds:g} s in slices of {slice_s:g} s: expected at least a slice, and at"
            f" most {LONGEST_S:g} s"
        )
    slices: list[dict[str, Any]] = []
    with serving_photos(ground, workers=workers) as (server, photos), pauses() as machine_since:
        rate = (
            rate
            or SHARE_OF_SATURATION
            * closed_loop(
                server.port, shuffled(photos, seed=0), concurrency=SATURATING, seconds=5.0
            ).per_second()
        )
        mixed, expected = mixture(photos, port=server.port)
        order = shuffled(mixed, seed=1)
        first = [worker.pid for worker in server.workers()]
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            offsets_s = arrivals_s(rate, slice_s, seed=len(slices))
            _leave(
                server.port,
                [
                    request.wire
                    for request in islice(
                        shuffled(photos, seed=len(slices)), len(offsets_s) // LEAVING_EVERY
                    )
                ],
            )
            wrong: Counter[str] = Counter()
            machine_since()
            run = open_loop(
                server.port,
                order,
                offsets_s=offsets_s,
                inspect=partial(_note_wrong, wrong, expected),
            )
            slices.append(
                {
                    "counts": run.counts(),
                    "wrong": dict(wrong),
                    "machine": machine_since(),
                    "latency_ms": percentiles_ms(run.latencies_ms()),
                    "workers": [held(worker).as_dict() for worker in server.workers()],
                }
            )
            print(f"{len(slices) * slice_s:7.0f} s  {_line(slices[-1])}", flush=True)
        same = first == [worker.pid for worker in server.workers()]
        tracebacks = server.log.count("Traceback")
    return {
        "rate_per_s": rate,
        "slice_s": slice_s,
        "slices": slices,
        **judge(slices, same_workers=same, tracebacks=tracebacks),
    }


def mixture(photos: Sequence[Request], *, port: int) -> tuple[list[Request], dict[int, int]]:
    """The requests, most of them photos, and the status that each must get."""
    wires = [(request.wire, 200) for request in photos]
    for request in photos[:: max(1, len(photos) // 25)]:
        body = request.wire.partition(b"\r\n\r\n")[2]
        wires.append((post("/v1/classify", body[: len(body) // 2], port=port), 422))
        wires.append((post("/v1/classify", body, port=port, content_type="multipart/mixed"), 415))
        wires.append((post("/v1/classify?top_k=0", body, port=port), 400))
    for path, status in (("/v1/models", 200), ("/readyz", 200), ("/nowhere", 404)):
        wires += [
            (f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode("ascii"), status)
        ] * 5
    return [Request(index, wire) for index, (wire, _) in enumerate(wires)], {
        index: status for index, (_, status) in enumerate(wires)
    }


def _note_wrong(
    wrong: Counter[str], expected: dict[int, int], index: int, status: int, body: bytes
) -> None:
    """Count an answer with another status than *expected* in *wrong*, by status and code."""
    if status != expected.get(index):
        wrong[
            (
                f"{status} {json.loads(body)['code']}"
                if body.startswith(b"{") and b'"code"' in body
                else str(status)
            )
        ] += 1


def _leave(port: int, wires: Sequence[bytes]) -> None:
    """Clients that close the connection in the middle of their photo."""
    for wire in wires:
        with socket.create_connection((HOST, port), timeout=10.0) as client:
            client.sendall(wire[: len(wire) // 2])


def judge(
    slices: Sequence[dict[str, Any]], *, same_workers: bool, tracebacks: int
) -> dict[str, Any]:
    """Growth of each worker after the warm-up, and what went wrong."""
    judged = slices[int(len(slices) * WARM_SHARE) :]
    quarter = max(1, len(judged) // 4)
    growth = [
        {
            name: (
                _middle(judged[-quarter:], worker, name) / _middle(judged[:quarter], worker, name)
                - 1.0
            )
            for name in Held.__dataclass_fields__
        }
        for worker in range(len(slices[0]["workers"]))
    ]
    wrong = sum(sum(one["wrong"].values()) for one in slices)
    memory = max(one["rss_mib"] for one in growth)
    files = max(max(one["files"], one["threads"]) for one in growth)
    demands = (
        ("growth of a worker's resident memory, share", memory, GROWTH_LIMIT),
        ("growth of its open files or threads, share", files, 0.1),
        ("answers with another status than they should have", float(wrong), 0.0),
        ("workers that died", float(not same_workers), 0.0),
        ("tracebacks in the log", float(tracebacks), 0.0),
    )
    verdict = [
        {"what": what, "found": found, "wanted": f"at most {most:g}", "holds": found <= most}
        for what, found, most in demands
    ]
    return {"growth": growth, "verdict": verdict}


def _middle(slices: Sequence[dict[str, Any]], worker: int, name: str) -> float:
    return float(np.median([one["workers"][worker][name] for one in slices]))


def _line(one: dict[str, Any]) -> str:
    tail = one["latency_ms"].get("p99", float("nan"))
    machine = ", ".join(f"{name} {value:.3g}" for name, value in one["machine"].items())
    workers = ", ".join(
        f"{w['rss_mib']:.0f} MiB {w['files']:.0f} files {w['threads']:.0f} threads"
        for w in one["workers"]
    )
    return f"{one['counts']} wrong {one['wrong']}  p99 {tail:.0f} ms  machine {machine}  {workers}"
