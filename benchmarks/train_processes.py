"""Two processes against one with the same global batch: accuracy over seeds, and time.

    python -m benchmarks.train_processes [--seeds 3] [--processes 2] [--recipe lenet5]
                                         [--data digits] [--set FIELD=VALUE] [--out FILE]

Each run is a `loupe train` under torchrun on this machine, with one process or several. On a CPU
each of several has its share of the cores. Accuracy is that of the best epoch on the validation
images. Both ways alternate, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import command, machine, results_file, spread, write


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the seeds one after the other and write the figures."""
    options = _options(arguments)
    runs = [
        {"seed": seed, "processes": processes, **measure(processes, seed, options)}
        for seed in range(options.seeds)
        for processes in (1, options.processes)
    ]
    by_count = {
        count: [run for run in runs if run["processes"] == count]
        for count in (1, options.processes)
    }
    report: dict[str, Any] = {
        "command": command("train_processes", arguments),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "torchvision")},
        "runs": runs,
        "summary": {
            str(count): {
                name: spread([run[name] for run in found])
                for name in ("accuracy", "wall_s", "images_per_s")
            }
            for count, found in by_count.items()
        },
        "mean_accuracy": {
            str(count): statistics.fmean(run["accuracy"] for run in found)
            for count, found in by_count.items()
        },
    }
    for count, figures in report["summary"].items():
        accuracy, speed = figures["accuracy"], figures["images_per_s"]
        print(
            f"{count} processes: mean accuracy {report['mean_accuracy'][count]:.4f}"
            f" ({accuracy['least']:.4f} to {accuracy['greatest']:.4f}), {speed['median']:.0f}"
            " images/s"
        )
    write(report, options.out)


def measure(processes: int, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run of the recipe by *processes*."""
    with tempfile.TemporaryDirectory(prefix="loupe-processes-") as folder:
        out = Path(folder) / "run"
        settings = [
            word
            for assignment in (f"seed={seed}", *options.assignments)
            for word in ("--set", assignment)
        ]
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
            "loupe",
            "train",
        ]
        asked = [
            *launch,
            "--recipe",
            options.recipe,
            "--data",
            options.data,
            "--out",
            str(out),
            "--no-tensorboard",
            *settings,
        ]
        started = time.perf_counter()
        subprocess.run(asked, check=True)
        wall_s = time.perf_counter() - started
        epochs = [
            json.loads(line)
            for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    trained = [epoch["images_per_s"] for epoch in epochs if epoch["phase"] == "train"]
    return {
        "accuracy": max(epoch["val_accuracy"] for epoch in epochs),
        "wall_s": wall_s,
        "images_per_s": statistics.median(trained),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recipe", default="lenet5")
    parser.add_argument("--data", default="digits", help="as `loupe train` takes it")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe",
    )
    parser.add_argument("--out", type=Path, default=results_file("train_processes"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
