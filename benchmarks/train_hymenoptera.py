"""Fine-tuning on ants and bees: accuracy over seeds, time, and the cost of an epoch of the probe.

    .venv/bin/python -m benchmarks.train_hymenoptera [--data FOLDER] [--seeds 3] [--out FILE]

FOLDER holds hymenoptera/{train,val}, the images of PyTorch's tutorial, and
weights/mobilenet_v2-imagenet1k.safetensors. Validation accuracy is that of the epoch that was best
on the same images, so it is slightly too high. Time is that of a whole `loupe train` in its own
process, with imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import command, machine, results_file, shared_data, spread, versions, write
from models.machine import threads_per_worker


def main() -> None:
    """Measure the seeds one after the other and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder with hymenoptera and weights"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results_file("train_hymenoptera"))
    options = parser.parse_args()
    weights = options.data / "weights" / "mobilenet_v2-imagenet1k.safetensors"
    runs = [measure(options.data / "hymenoptera", weights, seed) for seed in range(options.seeds)]
    report: dict[str, Any] = {
        "command": command("train_hymenoptera"),
        "machine": {**machine(), "threads": threads_per_worker(1)},
        "versions": versions() | {name: version(name) for name in ("torch", "torchvision")},
        "runs": runs,
        "summary": {
            name: spread([run[name] for run in runs]) for name in runs[0] if name != "seed"
        },
        "mean_accuracy": statistics.fmean(run["accuracy"] for run in runs),
    }
    print(f"mean accuracy {report['mean_accuracy']:.4f}")
    for name, figures in report["summary"].items():
        print(
            f"{name:28} {figures['median']:9.4f}   ({figures['least']:.4f} to"
            f" {figures['greatest']:.4f}, {len(runs)} seeds)"
        )
    write(report, options.out)


def measure(data: Path, weights: Path, seed: int) -> dict[str, float]:
    """One run of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = [
            "--set",
            "network=mobilenet_v2",
            "--set",
            f"weights={weights}",
            "--set",
            f"seed={seed}",
            # These weights are not torchvision's, which take 232.
            "--set",
            "resize_size=256",
        ]
        asked = [
            sys.executable,
            "-m",
            "loupe",
            "train",
            "--recipe",
            "finetune",
            "--data",
            str(data),
            "--out",
            str(out),
            *settings,
        ]
        started = time.perf_counter()
        subprocess.run(asked, check=True)
        wall_s = time.perf_counter() - started
        epochs = [
            json.loads(line)
            for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    first, *later = [epoch["seconds"] for epoch in epochs if epoch["phase"] == "probe"]
    return {
        "seed": seed,
        "accuracy": max(epoch["val_accuracy"] for epoch in epochs),
        "probe_accuracy": max(
            epoch["val_accuracy"] for epoch in epochs if epoch["phase"] == "probe"
        ),
        "wall_s": wall_s,
        "first_probe_epoch_s": first,
        "median_later_probe_epoch_s": statistics.median(later),
        "later_share": statistics.median(later) / first,
    }


if __name__ == "__main__":
    main()
