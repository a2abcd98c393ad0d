"""Loupe alone under stress: refuse quickly, change its model without a failure, stay small.

Each scenario gives its figures. `verdict` has each target with the figure found.
`benchmarks.serving.tail` has the scenario of latency.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import spread
from benchmarks.serving.answers import OK, Run, percentiles_ms
from benchmarks.serving.ground import NAME, Ground
from benchmarks.serving.load import Request, arrivals_s, closed_loop, open_loop, shuffled
from benchmarks.serving.photos import numbered, post
from benchmarks.serving.processes import held
from models.store.store import Store
from tests.http.server import Server, serving

SATURATING = 32
"""Requests at a time that saturate two cores."""
REFUSALS = (429, 503)
TOO_LATE = 504
OVERLOAD, GOODPUT_LIMIT, REFUSAL_LIMIT_MS = 3.0, 0.9, 10.0
MEMORY_LIMIT_MIB = 250e6 / 2**20
"""250 MB."""
_VERSION = re.compile(rb'"version": ?(\d+)')


@contextmanager
def serving_photos(
    ground: Ground, *, workers: int, **settings: object
) -> Iterator[tuple[Server, list[Request]]]:
    """`loupe serve` of the benchmark's model, and a request for each photo."""
    with (
        tempfile.TemporaryDirectory(prefix="loupe-scenario-") as place,
        serving(Path(place), store=ground.store, workers=workers, model=NAME, **settings) as server,
    ):
        yield (
            server,
            numbered([post("/v1/classify", photo, port=server.port) for photo in ground.photos]),
        )


def overload(
    ground: Ground, *, workers: int, rounds: int, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Three times as many requests as the server can answer: its goodput and its refusals."""
    found = []
    with serving_photos(ground, workers=workers, deadline_ms=deadline_ms) as (server, requests):
        for number in range(rounds):
            order = shuffled(requests, seed=number)
            peak = closed_loop(
                server.port, order, concurrency=SATURATING, seconds=seconds
            ).per_second()
            run = open_loop(
                server.port,
                order,
                offsets_s=arrivals_s(OVERLOAD * peak, seconds, seed=number),
                connections=512,
            )
            found.append(
                {"peak_per_s": peak, **_overload_figures(run, peak=peak, deadline_ms=deadline_ms)}
            )
    refusal_ms = [one["refusal_ms"]["p99"] for one in found if one["refusal_ms"]]
    return {
        "times_capacity": OVERLOAD,
        "deadline_ms": deadline_ms,
        "rounds": found,
        "verdict": [
            demand(
                "goodput, share of the peak",
                spread([one["goodput_share"] for one in found])["median"],
                at_least=GOODPUT_LIMIT,
            ),
            # A round in which nothing was refused was no overload.
            demand(
                "p99 of refusals, ms",
                max(refusal_ms, default=float("nan")),
                at_most=REFUSAL_LIMIT_MS,
            ),
            demand(
                "accepted requests past their deadline",
                float(sum(one["past_deadline"] + one["expired"] for one in found)),
                at_most=0.0,
            ),
            demand(
                "requests without an answer",
                float(sum(one["counts"].get("0", 0) for one in found)),
                at_most=0.0,
            ),
        ],
    }


def _overload_figures(run: Run, *, peak: float, deadline_ms: float) -> dict[str, Any]:
    # Since it was sent: the server cannot know a request that waits for a free connection of the
    # generator.
    good_ms = run.latencies_ms(since="sent")
    refused = {status: run.latencies_ms(status=status, since="sent") for status in REFUSALS}
    return {
        "offered_per_s": len(run.answers) / run.seconds,
        "counts": run.counts(),
        "goodput_share": run.per_second() / peak,
        "accepted_ms": percentiles_ms(good_ms),
        "refusal_ms": percentiles_ms(max(refused.values(), key=len)),
        "past_deadline": int((good_ms > deadline_ms).sum()),
        "expired": sum(answer.status == TOO_LATE for answer in run.measured),
        "generator_us": run.cpu_us_per_request,
    }


def reload(ground: Ground, *, workers: int, changes: int, seconds: float) -> dict[str, Any]:
    """Move the production alias *changes* times under full load; no request may fail."""
    store = Store(ground.store)
    other = store.publish(ground.package, name=NAME).version
    store.promote(NAME, 1)
    seen: dict[str, int] = {}

    def inspect(index: int, status: int, body: bytes) -> None:
        version = _VERSION.search(body) if status == OK else None
        if version is not None:
            seen[version[1].decode("ascii")] = seen.get(version[1].decode("ascii"), 0) + 1

    with serving_photos(ground, workers=workers) as (server, requests):
        promotions = threading.Thread(target=_promote, args=(store, (other, 1), changes, seconds))
        promotions.start()
        length_s = seconds * (changes + 1)
        run = closed_loop(
            server.port,
            shuffled(requests, seed=0),
            concurrency=SATURATING,
            seconds=length_s,
            inspect=inspect,
        )
        promotions.join()
    failed = sum(answer.status != OK for answer in run.answers)
    return {
        "changes": changes,
        "counts": run.counts(),
        "answers_by_version": seen,
        "latency_ms": percentiles_ms(run.latencies_ms()),
        "verdict": [
            demand("failed requests", float(failed), at_most=0.0),
            demand("versions that answered", float(len(seen)), at_least=2.0),
        ],
    }


def _promote(store: Store, versions: tuple[int, int], changes: int, seconds: float) -> None:
    for number in range(changes):
        time.sleep(seconds)
        store.promote(NAME, versions[number % 2])


def memory(ground: Ground, *, workers: int, seconds: float) -> dict[str, Any]:
    """Memory of a worker when it is ready, and after full load."""
    with serving_photos(ground, workers=workers) as (server, requests):
        ready = [held(worker) for worker in server.workers()]
        closed_loop(
            server.port, shuffled(requests, seed=0), concurrency=SATURATING, seconds=seconds
        )
        loaded = [held(worker) for worker in server.workers()]
        supervisor = held(server.family()[0])
    worst = max(one.rss_mib for one in loaded)
    return {
        "workers": workers,
        "ready": [one.as_dict() for one in ready],
        "after_load": [one.as_dict() for one in loaded],
        "supervisor": supervisor.as_dict(),
        "verdict": [
            demand("resident memory of a worker after load, MiB", worst, at_most=MEMORY_LIMIT_MIB),
            demand(
                "the same, shared pages divided (PSS), MiB",
                max(one.pss_mib for one in loaded),
                at_most=MEMORY_LIMIT_MIB,
            ),
        ],
    }


def demand(
    what: str, found: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """A target, the figure found, and whether it is reached. NaN reaches none."""
    holds = (at_most is None or found <= at_most) and (at_least is None or found >= at_least)
    wanted = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    return {"what": what, "found": found, "wanted": wanted, "holds": holds}


def print_verdict(name: str, report: dict[str, Any]) -> None:
    """Print a line for each target and each remark."""
    for demand in report["verdict"]:
        print(
            f"{name:9} {demand['what']}: {demand['found']:.4g} (wanted:"
            f" {demand['wanted']}){'' if demand['holds'] else '   <-- NOT REACHED'}"
        )
    for remark in report.get("remarks", []):
        print(f"{name:9} {remark}")
