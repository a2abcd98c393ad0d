"""What the engine costs an image, without decoding and the model: queue, threads, answer, metrics.

    python benchmarks/engine_overhead.py [--checkout FOLDER ...] [--rounds 10]

Each round runs every checkout in a process of its own, with lanes and with stages. So several
checkouts are compared on the same machine at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

CLIENTS, REQUESTS = 8, 1500
POLICIES = {"lanes": {"lanes": 2}, "stages": {"decode_threads": 2}}


def overhead_us(policy: str) -> float:
    """CPU time of this process for each image, in microseconds."""
    import numpy as np

    from service.engine.classifier import Classifier
    from service.engine.pipeline import Pipeline

    pixels_HWC = np.zeros((8, 8, 3), np.uint8)
    probabilities_NK = np.random.default_rng(0).random((1, 1000)).astype(np.float32)
    labels = [str(index) for index in range(1000)]
    preprocess = SimpleNamespace(widened=lambda: None)
    model = SimpleNamespace(
        manifest=SimpleNamespace(labels=labels, abstain_threshold=0.0, preprocess=preprocess),
        run=lambda pixels, _: {"probabilities": np.repeat(probabilities_NK, len(pixels), 0)},
    )
    classifier = Classifier(model, name="nothing", version=1)
    classifier.decode = lambda _: pixels_HWC

    async def ask(pipeline: Pipeline, count: int) -> None:
        for _ in range(count):
            await pipeline.classify(b"photo", top_k=5, deadline=time.monotonic() + 10, client="a")

    async def measured() -> float:
        async with Pipeline(
            classifier, max_batch_size=8, max_queue_size=64, **POLICIES[policy]
        ) as pipeline:
            await asyncio.gather(*(ask(pipeline, 100) for _ in range(CLIENTS)))
            begun_s = time.process_time()
            await asyncio.gather(*(ask(pipeline, REQUESTS) for _ in range(CLIENTS)))
            return 1e6 * (time.process_time() - begun_s) / (CLIENTS * REQUESTS)

    return asyncio.run(measured())


def main() -> None:
    """Measure, and print a line for each policy and checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, nargs="*", default=[Path()])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--once", choices=POLICIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(overhead_us(options.once)))
        return
    found: dict[tuple[str, Path], list[float]] = {}
    for _ in range(options.rounds):
        for policy in POLICIES:
            for checkout in options.checkout:
                command = [sys.executable, str(Path(__file__).resolve()), "--once", policy]
                environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
                output = subprocess.run(command, env=environment, capture_output=True, check=True)
                found.setdefault((policy, checkout), []).append(json.loads(output.stdout))
    for (policy, checkout), spent_us in found.items():
        median, least, most = statistics.median(spent_us), min(spent_us), max(spent_us)
        print(f"{policy:7} {checkout}: {median:.0f} us ({least:.0f} to {most:.0f})")


if __name__ == "__main__":
    main()
