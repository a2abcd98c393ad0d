"""What a service must do besides being fast: keep its tail short, refuse well, change its model,
stay small. Loupe alone.

Each scenario gives its figures and, under `verdict`, each demand with what was found.
"""

from __future__ import annotations

import heapq
import json
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import spread
from benchmarks.serving.answers import OK, Run, percentiles_ms
from benchmarks.serving.ground import NAME, Ground
from benchmarks.serving.load import Request, arrivals_s, closed_loop, open_loop, shuffled
from benchmarks.serving.photos import numbered, post
from benchmarks.serving.processes import held
from models.store.store import Store
from tests.http.server import Server, serving

IDEAL_REQUESTS = 200_000
SATURATING = 32
"""Requests at a time that saturate two cores."""
REFUSALS = (429, 503)
TOO_LATE = 504
LOAD, TAIL_LIMIT = 0.7, 3.0
CORES = 2
"""Of the machine that the demands were made for."""
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


def latency(ground: Ground, *, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """p99 of arrivals at random at 70 % of saturation, against the median of requests that have the
    server to themselves.

    Saturation is measured anew in each round, just before: a machine that others slow down has less
    of it.
    """
    found = []
    with serving_photos(ground, workers=workers) as (server, requests):
        for number in range(rounds):
            order = shuffled(requests, seed=number)
            alone = closed_loop(server.port, order, concurrency=1, seconds=seconds)
            full = closed_loop(server.port, order, concurrency=SATURATING, seconds=seconds)
            service_ms = percentiles_ms(alone.latencies_ms())["p50"]
            one: dict[str, Any] = {"service_ms": service_ms, "saturation_per_s": full.per_second()}
            for name, even in (("random", False), ("even", True)):
                offsets_s = arrivals_s(LOAD * full.per_second(), seconds, seed=number, even=even)
                bodies: list[bytes] = []
                run = open_loop(
                    server.port,
                    order,
                    offsets_s=offsets_s,
                    inspect=lambda *answer, bodies=bodies: bodies.append(answer[-1]),
                )
                tail = percentiles_ms(run.latencies_ms())
                ideal = (
                    ideal_p99_ms(
                        alone.latencies_ms(), load=LOAD, servers=CORES, seed=number, even=even
                    )
                    / service_ms
                )
                one[name] = {
                    "counts": run.counts(),
                    "latency_ms": tail,
                    "times_service": tail["p99"] / service_ms,
                    "ideal_times_service": ideal,
                    "where_ms": where_ms(run, bodies),
                }
            found.append(one)
    times = {
        name: spread([one[name]["times_service"] for one in found]) for name in ("random", "even")
    }
    slowest = [one["random"]["where_ms"]["slowest"] for one in found]
    ideal = {
        name: spread([one[name]["ideal_times_service"] for one in found])
        for name in ("random", "even")
    }
    return {
        "load": LOAD,
        "rounds": found,
        "p99_times_service": times,
        "ideal_p99_times_service": ideal,
        "remarks": (
            [
                f"p99 with {name} arrivals: {times[name]['median']:.3g}; of {CORES} cores behind"
                f" one queue that lose nothing: {ideal[name]['median']:.3g}"
                for name in ("random", "even")
            ]
            + [
                "slowest hundredth, ms:"
                f" {', '.join(f'{part} {np.median([one[part] for one in slowest]):.1f}' for part in slowest[0])}"
            ]
        ),
        "verdict": [
            _demand(
                "p99 at 70 % load, times the median service time",
                times["random"]["median"],
                at_most=TAIL_LIMIT,
            )
        ],
    }


def where_ms(run: Run, bodies: Sequence[bytes]) -> dict[str, dict[str, float]]:
    """Where the time of the median and of the slowest hundredth went, in milliseconds, mean of the
    answers around it, as their *bodies* say.

    `read` to `other` are the service's; `outside` is what it does not know of: sockets, the event
    loop's other work, and the generator.
    """
    # Those that were given up at the end come last, and have no body.
    answered = sorted(
        ((a.done_s - a.due_s) * 1000.0, body)
        for a, body in zip(run.answers, bodies, strict=False)
        if a.status == OK
    )
    middle, few = len(answered) // 2, max(1, len(answered) // 100)
    return {
        "median": _mean_ms(answered[middle : middle + few]),
        "slowest": _mean_ms(answered[-few:]),
    }


def _mean_ms(answered: Sequence[tuple[float, bytes]]) -> dict[str, float]:
    parts: Counter[str] = Counter()
    for latency_ms, body in answered:
        timing = json.loads(body)["timing_ms"]
        total_ms = timing.pop("total")
        parts.update(
            timing | {"other": total_ms - sum(timing.values()), "outside": latency_ms - total_ms}
        )
    return {name: spent_ms / len(answered) for name, spent_ms in parts.items()}


def ideal_p99_ms(
    service_ms: np.ndarray[Any, np.dtype[np.float64]],
    *,
    load: float,
    servers: int,
    seed: int,
    even: bool,
) -> float:
    """p99 of *servers* cores behind one queue, first come first served, in milliseconds: what the
    arrivals alone cost at *load*, 0 to 1.

    Images take the times *service_ms*, those of requests that come alone, in random order. By
    simulation, as Kendall's M/G/c and D/G/c have no closed form. A real service pays for its
    generator, its event loop and its batches besides.
    """
    rng = np.random.default_rng(seed)
    times_ms = rng.choice(service_ms, IDEAL_REQUESTS)
    per_ms = load * servers / float(times_ms.mean())
    offsets_ms = arrivals_s(per_ms, IDEAL_REQUESTS / per_ms, seed=seed, even=even)
    free_ms = [0.0] * servers
    answered_ms = []
    for due_ms, time_ms in zip(offsets_ms, times_ms, strict=False):
        done_ms = max(due_ms, heapq.heappop(free_ms)) + float(time_ms)
        heapq.heappush(free_ms, done_ms)
        answered_ms.append(done_ms - due_ms)
    return percentiles_ms(np.array(answered_ms))["p99"]


def overload(
    ground: Ground, *, workers: int, rounds: int, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Three times as many requests as the server can answer: what it still answers, how fast it
    refuses the rest.
    """
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
            _demand(
                "goodput, share of the peak",
                spread([one["goodput_share"] for one in found])["median"],
                at_least=GOODPUT_LIMIT,
            ),
            # A round in which nothing was refused was no overload.
            _demand(
                "p99 of refusals, ms",
                max(refusal_ms, default=float("nan")),
                at_most=REFUSAL_LIMIT_MS,
            ),
            _demand(
                "accepted requests past their deadline",
                float(sum(one["past_deadline"] + one["expired"] for one in found)),
                at_most=0.0,
            ),
            _demand(
                "requests without an answer",
                float(sum(one["counts"].get("0", 0) for one in found)),
                at_most=0.0,
            ),
        ],
    }


def _overload_figures(run: Run, *, peak: float, deadline_ms: float) -> dict[str, Any]:
    # From when it was sent: the server cannot know of a request that the generator holds back for
    # want of a connection.
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
    """The production alias moves between two versions *changes* times under full load: no request
    may fail.
    """
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
            _demand("failed requests", float(failed), at_most=0.0),
            _demand("versions that answered", float(len(seen)), at_least=2.0),
        ],
    }


def _promote(store: Store, versions: tuple[int, int], changes: int, seconds: float) -> None:
    for number in range(changes):
        time.sleep(seconds)
        store.promote(NAME, versions[number % 2])


def memory(ground: Ground, *, workers: int, seconds: float) -> dict[str, Any]:
    """What a worker holds once it is ready, and after full load."""
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
            _demand("resident memory of a worker after load, MiB", worst, at_most=MEMORY_LIMIT_MIB),
            _demand(
                "the same, shared pages divided (PSS), MiB",
                max(one.pss_mib for one in loaded),
                at_most=MEMORY_LIMIT_MIB,
            ),
        ],
    }


def _demand(
    what: str, found: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """What was asked for and whether it was found. NaN never holds."""
    holds = (at_most is None or found <= at_most) and (at_least is None or found >= at_least)
    wanted = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    return {"what": what, "found": found, "wanted": wanted, "holds": holds}


def print_verdict(name: str, report: dict[str, Any]) -> None:
    """A line for each demand, and for each remark."""
    for demand in report["verdict"]:
        print(
            f"{name:9} {demand['what']}: {demand['found']:.4g} (wanted:"
            f" {demand['wanted']}){'' if demand['holds'] else '   <-- NOT REACHED'}"
        )
    for remark in report.get("remarks", []):
        print(f"{name:9} {remark}")
