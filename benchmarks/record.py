"""What every benchmark records: the command, the machine, the versions, the spread."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def results_file(name: str) -> Path:
    """Where benchmark *name* writes its JSON by default."""
    return Path(os.path.relpath(ROOT / "benchmarks" / "results" / f"{name}.json"))


def shared_data() -> Path:
    """Where photos and weights for benchmarks are by default: next to the checkout, never in it."""
    return Path(os.path.relpath(ROOT.parent / "shared" / "data"))


def command(name: str, arguments: Sequence[str] | None = None) -> str:
    """The command line of benchmark *name* with *arguments*, by default those of this process."""
    return shlex.join(
        ["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if arguments is None else arguments)]
    )


def write(report: dict[str, Any], out: Path) -> None:
    """Write *report* as JSON and print its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of *values*."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def machine() -> dict[str, Any]:
    """CPU, the cores that this process may use, and the system; never a host name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = (
        cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
        if cpuinfo.exists()
        else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions that the figures depend on."""
    import onnxruntime as ort

    return {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "onnx": version("onnx"),
        "numpy": version("numpy"),
    }
