"""What requests in flight see while a worker opens another version.

    .venv/bin/python -m benchmarks.reload [--network mobilenet_v3_small] [--threads 1]
                                          [--clients 4] [--opens 7] [--out FILE]

One process stands for a worker. A pipeline answers photos of 500 x 375 pixels from clients that ask
without a pause, while the event loop records how long it could not run. Phases with and without an
opening alternate. An opening does everything that a swap does: verify, cut the graph, session,
warm-up, golden images. Printed are the time of the opening, the longest stall of the event loop,
and p50 and p99 of the answers. Each figure is given as least, median and greatest over the phases.
`--short` opens three times.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, spread, versions, write
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline

BATCH = 16
QUIET_S = 3.0
TICK_S = 0.001


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="loupe-reload-") as place:
        package = build_network_package(Path(place) / options.network, network=options.network)
        phases = asyncio.run(
            measure(package, threads=options.threads, clients=options.clients, opens=options.opens)
        )
    report: dict[str, Any] = {
        "command": command("reload", arguments),
        "machine": machine(),
        "versions": versions(),
        "network": options.network,
        "phases": phases,
        "summary": {
            kind: {name: spread([phase[name] for phase in found]) for name in found[0]}
            for kind, found in phases.items()
        },
    }
    for kind, figures in report["summary"].items():
        for name, found in figures.items():
            print(
                f"{kind:8} {name:10} {found['median'] * 1000:9.1f} ms  "
                f" ({found['least'] * 1000:.1f} to {found['greatest'] * 1000:.1f})"
            )
    write(report, options.out)


async def measure(
    package: Path, *, threads: int, clients: int, opens: int
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each phase, alternately without and with an opening."""
    classifier = Classifier.open(package, threads=threads, max_batch_size=BATCH)
    photos = [path.read_bytes() for path in sorted((package / "golden").glob("*.jpg"))]
    found: dict[str, list[dict[str, float]]] = {"quiet": [], "opening": []}
    limits = {
        "decode_threads": threads + 1,
        "max_batch_size": BATCH,
        "max_queue_delay_s": 0.0,
        "max_queue_size": 64,
    }
    async with Pipeline(classifier, **limits) as pipeline:
        for _ in range(opens):
            found["quiet"].append(await _phase(pipeline, photos, clients, asyncio.sleep(QUIET_S)))
            opening = asyncio.to_thread(
                Classifier.open, package, threads=threads, max_batch_size=BATCH
            )
            found["opening"].append(await _phase(pipeline, photos, clients, opening))
    return found


async def _phase(
    pipeline: Pipeline, photos: list[bytes], clients: int, work: Any
) -> dict[str, float]:
    """Figures of the time that *work* takes."""
    answers: list[float] = []
    stalls: list[float] = [0.0]

    async def client(number: int) -> None:
        while True:
            began = time.perf_counter()
            await pipeline.classify(
                photos[number % len(photos)], top_k=5, deadline=time.monotonic() + 60.0
            )
            answers.append(time.perf_counter() - began)
            number += 1

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            stalls.append(time.perf_counter() - began - TICK_S)

    tasks = [
        asyncio.create_task(one) for one in (tick(), *(client(number) for number in range(clients)))
    ]
    began = time.perf_counter()
    await work
    took_s = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    quantiles = statistics.quantiles(answers, n=100) if len(answers) > 1 else [float("nan")] * 99
    return {
        "took_s": took_s,
        "stall_s": max(stalls),
        "p50_s": quantiles[49],
        "p99_s": quantiles[98],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mobilenet_v3_small")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="intra-op threads, as each of two workers on two cores has",
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--opens", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="three openings")
    parser.add_argument("--out", type=Path, default=results_file("reload"))
    options = parser.parse_args(arguments)
    options.opens = 3 if options.short else options.opens
    return options


if __name__ == "__main__":
    main()
