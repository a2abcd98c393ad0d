"""LeNet-5 on scikit-learn's digits: accuracy of the exported package on unseen images, over seeds.

    python -m benchmarks.train_lenet5 [--seeds 3] [--set FIELD=VALUE] [--out FILE]

Each seed is a whole `loupe train` and `loupe export` in their own processes. The accuracy is that
in the package's manifest: on the 359 test images, through the served preprocessing. The seed also
decides which images those are. The target is 98.5 %.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import command, machine, results_file, spread, versions, write
from models.machine import threads_per_worker
from models.package.manifest_file import read_manifest


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the seeds one after the other and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe",
    )
    parser.add_argument("--out", type=Path, default=results_file("train_lenet5"))
    options = parser.parse_args(arguments)
    runs = [measure(seed, options.assignments) for seed in range(options.seeds)]
    report: dict[str, Any] = {
        "command": command("train_lenet5", arguments),
        "machine": {**machine(), "threads": threads_per_worker(1)},
        "versions": (
            versions() | {name: version(name) for name in ("torch", "torchvision", "scikit-learn")}
        ),
        "runs": runs,
        "mean_accuracy": statistics.fmean(run["accuracy"] for run in runs),
        "summary": {name: spread([run[name] for run in runs]) for name in ("accuracy", "train_s")},
    }
    print(
        f"mean accuracy {report['mean_accuracy']:.4f}:"
        f" {', '.join(format(run['accuracy'], '.4f') for run in runs)}"
    )
    write(report, options.out)


def measure(seed: int, assignments: Sequence[str]) -> dict[str, float]:
    """One run of the recipe, and its package."""
    with tempfile.TemporaryDirectory(prefix="loupe-lenet5-") as folder:
        run, package = Path(folder) / "run", Path(folder) / "package"
        settings = [
            word for assignment in (f"seed={seed}", *assignments) for word in ("--set", assignment)
        ]
        started = time.perf_counter()
        _loupe("train", "--recipe", "lenet5", "--data", "digits", "--out", str(run), *settings)
        train_s = time.perf_counter() - started
        _loupe("export", str(run), "--out", str(package))
        figures = read_manifest(package).evaluation
    top1 = figures.metrics["top1"]
    return {
        "seed": seed,
        "accuracy": top1.value,
        "low": top1.low,
        "high": top1.high,
        "images": figures.count,
        "train_s": train_s,
    }


def _loupe(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "loupe", *arguments], check=True)


if __name__ == "__main__":
    main()
