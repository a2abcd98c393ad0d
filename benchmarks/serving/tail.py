"""The latency scenario: p99 at 70 % load, its ideal, and where the time of slow answers goes."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import spread
from benchmarks.serving.answers import OK, Run, percentiles_ms
from benchmarks.serving.ground import Ground
from benchmarks.serving.load import arrivals_s, closed_loop, open_loop, shuffled
from benchmarks.serving.scenarios import SATURATING, demand, serving_photos

ARRIVALS = {"random": False, "even": True}
"""Name -> whether requests arrive evenly."""
IDEAL_REQUESTS = 200_000
LOAD, TAIL_LIMIT = 0.7, 3.0
CORES = 2
"""Cores of the machine for which the targets were set."""


def latency(ground: Ground, *, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """p99 of random arrivals at 70 % of saturation, in medians of requests that come alone.

    Each round first measures saturation, because other work on the machine lowers it.
    """
    found = []
    with serving_photos(ground, workers=workers) as (server, requests):
        for number in range(rounds):
            order = shuffled(requests, seed=number)
            alone = closed_loop(server.port, order, concurrency=1, seconds=seconds)
            full = closed_loop(server.port, order, concurrency=SATURATING, seconds=seconds)
            service_ms = percentiles_ms(alone.latencies_ms())["p50"]
            one: dict[str, Any] = {"service_ms": service_ms, "saturation_per_s": full.per_second()}
            for name, even in ARRIVALS.items():
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
    times, ideal = (
        {name: spread([one[name][figure] for one in found]) for name in ARRIVALS}
        for figure in ("times_service", "ideal_times_service")
    )
    slowest = [one["random"]["where_ms"]["slowest"] for one in found]
    parts = [f"{part} {np.median([one[part] for one in slowest]):.1f}" for part in slowest[0]]
    remarks = [
        f"p99 with {name} arrivals: {times[name]['median']:.3g}; ideal of {CORES} cores with one"
        f" queue: {ideal[name]['median']:.3g}"
        for name in ARRIVALS
    ]
    return {
        "load": LOAD,
        "rounds": found,
        "p99_times_service": times,
        "ideal_p99_times_service": ideal,
        "remarks": [*remarks, f"slowest hundredth, ms: {', '.join(parts)}"],
        "verdict": [
            demand(
                "p99 at 70 % load, times the median service time",
                times["random"]["median"],
                at_most=TAIL_LIMIT,
            )
        ],
    }


def where_ms(run: Run, bodies: Sequence[bytes]) -> dict[str, dict[str, float]]:
    """Where the time of the median and of the slowest hundredth went, in milliseconds.

    Each is the mean of the answers around it, as their *bodies* say. `read` to `other` are the
    service's own times. `outside` is everything else: sockets, other work of the event loop, and
    the generator.
    """
    # Requests that were cancelled at the end come last and have no body.
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
    """p99 in milliseconds of *servers* cores with one queue at *load*, 0 to 1.

    It is what the arrivals alone cost, first come first served. Images take the times *service_ms*
    of single requests, in random order. It is simulated, because Kendall's M/G/c and D/G/c have no
    closed form. A real service also pays for its generator, its event loop and its batches.
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
