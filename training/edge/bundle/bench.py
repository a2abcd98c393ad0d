"""Measures every variant of the model on this machine: `python bench.py`.

Each variant runs in its own process. The model is timed alone, with one image a run. Images/s is
measured from the image file to the answer, with the golden images in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from models.errors import LoupeError

HERE = Path(__file__).resolve().parent
WARM_UP_RUNS = 5
RUNS_AT_LEAST = 20


def measure(bundle: Path, variant: str, *, threads: int, seconds: float) -> dict[str, Any]:
    """The figures of *variant* in this process."""
    begun = time.perf_counter()
    import numpy as np
    from run import Classifier

    classifier = Classifier(bundle, variant=variant, threads=threads)
    photos = [
        path.read_bytes()
        for path in sorted((bundle / "golden").iterdir())
        if path.suffix != ".json"
    ]
    classifier.probabilities(photos[0])
    first_answer_ms = 1000 * (time.perf_counter() - begun)

    height, width = classifier.spec.crop
    pixels_NHWC = np.zeros((1, height, width, 3), dtype=np.uint8)
    times_ms = timed_ms(
        lambda: classifier.session.run(["probabilities"], {"image": pixels_NHWC}), seconds=seconds
    )
    photo = itertools.cycle(photos)
    whole_ms = timed_ms(lambda: classifier.probabilities(next(photo)), seconds=seconds)
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {
        "variant": variant,
        "bytes": (bundle / classifier.file).stat().st_size,
        "first_answer_ms": first_answer_ms,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "runs": len(times_ms),
        "images_per_s": 1000 * len(whole_ms) / sum(whole_ms),
        "peak_memory_mib": peak_memory_mib(),
    }


def timed_ms(run: Any, *, seconds: float) -> list[float]:
    """Milliseconds of each call of *run* during *seconds*, and of 20 calls at least."""
    for _ in range(WARM_UP_RUNS):
        run()
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(times_ms) < RUNS_AT_LEAST or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times_ms.append(1000 * (time.perf_counter() - started))
    return times_ms


def peak_memory_mib() -> float | None:
    """The most memory that this process held; None if the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: there a child begins with the peak of the process that forked it.
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def bench(bundle: Path, *, threads: int, seconds: float) -> list[dict[str, Any]]:
    """The figures of every variant of *bundle*, each measured in a fresh process.

    Raises `LoupeError` for one that does not run.
    """
    index = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    found = []
    for variant in index["variants"]:
        options = {"bundle": bundle.resolve(), "variant": variant, "threads": threads}
        asked = [sys.executable, str(Path(__file__).resolve()), f"--seconds={seconds}"]
        asked += [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise LoupeError(
                f"{variant} of {bundle} does not run here: {reason}; `python selftest.py` in the"
                " bundle says more"
            )
        found.append(json.loads(done.stdout))
    return found


def table(figures: list[dict[str, Any]]) -> str:
    """*figures* for people."""
    head = f"{'variant':12} {'size MB':>8} {'p50 ms':>8} {'p99 ms':>8} {'images/s':>9}"
    lines = [f"{head} {'memory MiB':>11} {'first answer ms':>16}"]
    for row in figures:
        memory = "-" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}"
        lines.append(
            f"{row['variant']:12} {row['bytes'] / 1e6:8.2f} {row['p50_ms']:8.2f}"
            f" {row['p99_ms']:8.2f} {row['images_per_s']:9.1f} {memory:>11}"
            f" {row['first_answer_ms']:16.0f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="for each of the two measurements of a variant"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--bundle", type=Path, default=HERE, help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = {"threads": options.threads, "seconds": options.seconds}
    if options.variant:
        print(json.dumps(measure(options.bundle, options.variant, **asked)))
        return 0
    from selftest import damaged_files

    if damaged := damaged_files(options.bundle):
        again = "unpack the bundle again, into an empty folder"
        print(f"{'; '.join(damaged)}; {again}", file=sys.stderr)
        return 1
    try:
        figures = bench(options.bundle, **asked)
    except LoupeError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=1) if options.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
