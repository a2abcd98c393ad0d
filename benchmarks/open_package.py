"""How long a worker takes to open a package of MobileNetV2's size.

    .venv/bin/python -m benchmarks.open_package [--package DIR] [--runs 9] [--batch 16] [--out FILE]

To open means: read, hash, check the graph, load, warm up, answer the golden images. Without
--package one is built: MobileNetV2 with 1000 classes and random weights, whose values do not
matter, and four golden photos of 500 x 375 pixels. Each run is a fresh process, as a starting
worker is. Its imports are timed separately. Then the package is opened twice: the first time in
this process, and once more. The disk's cache is warm, because the package was just written. Figures
are medians with the least and the greatest value over the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.packages import build_network_package
from benchmarks.record import ROOT, command, machine, results_file, spread, versions, write

LEAST_RUNS = 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in fresh processes, print the table, write the JSON."""
    options = _options(arguments)
    if options.child:
        print(json.dumps(measure(options.package, threads=options.threads, batch=options.batch)))
        return
    with tempfile.TemporaryDirectory(prefix="loupe-open-") as place:
        package = options.package or build_network_package(Path(place) / "mobilenet")
        runs = [_fresh(package, options) for _ in range(options.runs)]
        megabytes = sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) / 1e6
    report: dict[str, Any] = {
        "command": command("open_package", arguments),
        "machine": machine(),
        "versions": versions(),
        "package_megabytes": round(megabytes, 2),
        "runs": runs,
        "summary": {name: spread([run[name] for run in runs]) for name in runs[0]},
    }
    for name, figures in report["summary"].items():
        print(
            f"{name:24} {figures['median']:9.4f}   ({figures['least']:.4f} to"
            f" {figures['greatest']:.4f}, {len(runs)} processes)"
        )
    write(report, options.out)


def measure(package: Path, *, threads: int, batch: int) -> dict[str, float]:
    """Seconds of each step in this process, and its peak memory."""
    begun = time.perf_counter()
    from models.machine import threads_per_worker
    from models.package.verify import verify_package
    from models.runtime.session import open_model

    seconds = {"import_s": time.perf_counter() - begun}
    threads = threads or threads_per_worker(1)

    begun = time.perf_counter()
    verified = verify_package(package)
    seconds["verify_s"] = time.perf_counter() - begun
    open_model(verified, threads=threads, warm_batches=(1, batch))
    seconds["open_s"] = time.perf_counter() - begun

    begun = time.perf_counter()
    open_model(package, threads=threads, warm_batches=(1, batch))
    seconds["open_again_s"] = time.perf_counter() - begun
    return {**seconds, "peak_memory_mib": _peak_memory_mib()}


def _peak_memory_mib() -> float:
    # Not getrusage: there a child begins with the peak of the process that forked it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _fresh(package: Path, options: argparse.Namespace) -> dict[str, float]:
    asked = [
        sys.executable,
        "-m",
        "benchmarks.open_package",
        "--child",
        "--package",
        str(package.resolve()),
    ]
    asked += ["--threads", str(options.threads), "--batch", str(options.batch)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, help="open this package instead of a built one")
    parser.add_argument(
        "--runs", type=int, default=9, help=f"fresh processes, at least {LEAST_RUNS}"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="intra-op threads; 0: all that the cgroup allows, as `loupe serve` does",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="largest batch that is warmed up, as `loupe serve` does",
    )
    parser.add_argument("--out", type=Path, default=results_file("open_package"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.runs < LEAST_RUNS:
        parser.error(f"--runs is {options.runs}; a median of fewer than {LEAST_RUNS} says little")
    return options


if __name__ == "__main__":
    main()
