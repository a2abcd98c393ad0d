"""How long a newcomer waits: the whole demo, and a service from its start until it is ready.

    .venv/bin/python -m benchmarks.first_light [--demos 3] [--starts 9] [--out FILE]

A demo is `loupe demo --check` in an empty folder: train, export, publish, serve, classify, stop. A
start is `loupe serve` of a MobileNetV3-small with 1000 classes and one worker. It lasts from the
start of the process until /readyz says 200, which is checked every 20 ms. The disk's cache is warm.
Figures are medians with the least and the greatest value.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, spread, versions, write
from models.store.store import Store
from tests.http.server import environment, free_port, loupe, serving


def main() -> None:
    """Measure, print the table, write the JSON."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="loupe-first-light-") as place:
        folder = Path(place)
        demos = [_demo(_made(folder / f"demo-{run}")) for run in range(options.demos)]
        store = Store(folder / "store")
        store.publish(
            build_network_package(folder / "package", network="mobilenet_v3_small"),
            name="mobilenet",
        )
        starts = [
            _start(_made(folder / f"start-{run}"), store.root) for run in range(options.starts)
        ]
    report: dict[str, Any] = {
        "command": command("first_light"),
        "machine": machine(),
        "versions": versions(),
        "demos": demos,
        "start_to_ready_s": starts,
        "summary": {
            "demo_s": spread([demo["seconds"] for demo in demos]),
            "demo_accuracy_percent": spread([demo["accuracy_percent"] for demo in demos]),
            "demo_difference_from_torch": spread([demo["difference_from_torch"] for demo in demos]),
            "start_to_ready_s": spread(starts),
        },
    }
    for name, figures in report["summary"].items():
        print(
            f"{name:28} {figures['median']:.4g}   ({figures['least']:.4g} to"
            f" {figures['greatest']:.4g})"
        )
    write(report, options.out)


def _demo(folder: Path) -> dict[str, float]:
    """Seconds of one demo in *folder*, its accuracy over HTTP, and its difference from torch."""
    begun = time.perf_counter()
    asked = loupe("demo", "--check", "--port", free_port())
    done = subprocess.run(
        asked, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - begun
    accuracy = re.search(r"right over HTTP \((\d+\.\d+)%\)", done.stdout)
    difference = re.search(r"largest difference from torch (\S+)", done.stdout)
    assert accuracy is not None, done.stdout
    assert difference is not None, done.stdout
    return {
        "seconds": seconds,
        "accuracy_percent": float(accuracy[1]),
        "difference_from_torch": float(difference[1]),
    }


def _start(folder: Path, store: Path) -> float:
    with serving(folder, store=store) as server:
        return server.ready_s


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demos", type=int, default=3)
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--out", type=Path, default=results_file("first_light"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
