"""Fine-tuning on the ants and bees of PyTorch's tutorial: accuracy over seeds, wall time, and what an epoch of the probe costs.

    .venv/bin/python benchmarks/train_hymenoptera.py --data PHOTOS --weights FILE --out figures.json

Validation accuracy is that of the epoch that was best on the same images, and therefore a little high. Wall time is that of a whole
`loupe train` in a process of its own, imports among it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

from models.machine import threads_per_worker


def main() -> None:
    """Measure the seeds one after the other and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = [measure(options.data, options.weights, seed) for seed in range(options.seeds)]
    figures = {
        "command": "loupe train --recipe finetune --set network=mobilenet_v2",
        "machine": {"processor": processor(), "threads": threads_per_worker(1), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__},
        "mean_accuracy": statistics.fmean(run["accuracy"] for run in runs),
        "longest_s": max(run["wall_s"] for run in runs),
        "largest_later_share_of_first_probe_epoch": max(run["later_share"] for run in runs),
        "runs": runs,
    }
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: figures[key] for key in ("mean_accuracy", "longest_s", "largest_later_share_of_first_probe_epoch")}))


def measure(data: Path, weights: Path, seed: int) -> dict[str, float]:
    """One run of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = ["--set", "network=mobilenet_v2", "--set", f"weights={weights}", "--set", f"seed={seed}"]
        command = [sys.executable, "-m", "loupe", "train", "--recipe", "finetune", "--data", str(data), "--out", str(out), *settings]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        wall_s = time.perf_counter() - started
        epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, *later = [epoch["seconds"] for epoch in epochs if epoch["phase"] == "probe"]
    return {
        "seed": seed,
        "accuracy": max(epoch["val_accuracy"] for epoch in epochs),
        "probe_accuracy": max(epoch["val_accuracy"] for epoch in epochs if epoch["phase"] == "probe"),
        "wall_s": wall_s,
        "first_probe_epoch_s": first,
        "median_later_probe_epoch_s": statistics.median(later),
        "later_share": statistics.median(later) / first,
    }


def processor() -> str:
    """The processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
