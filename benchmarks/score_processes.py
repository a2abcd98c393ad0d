"""`loupe score` as a process: its peak of memory, its start, and Ray against the local engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.002
MEMORY_POLL_S = 0.05
JOURNAL_HEADER_BYTES = 16


def _start(package: Path, table: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    asked = [
        sys.executable,
        "-m",
        "loupe",
        "score",
        str(table),
        "--model",
        str(package),
        "--out",
        str(out),
        "--overwrite",
        *options,
    ]
    return subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peak_mb(package: Path, table: Path, folder: Path) -> float:
    """Peak memory of the process itself in MiB.

    `ru_maxrss` would begin with the peak of the process that forked it.
    """
    process = _start(package, table, folder / "memory.parquet")
    status = Path(f"/proc/{process.pid}/status")
    peak_kb = 0
    while process.poll() is None:
        found = [
            line
            for line in status.read_text(encoding="ascii").splitlines()
            if line.startswith("VmHWM")
        ]
        peak_kb = max([peak_kb, *(int(line.split()[1]) for line in found)])
        time.sleep(MEMORY_POLL_S)
    assert process.returncode == 0
    return peak_kb / 1024


def first_s(package: Path, table: Path, folder: Path, run: int) -> float:
    """Seconds from the start of the process until its journal has a record."""
    out = folder / f"first-{run}.parquet"
    journal = folder / f"{out.name}.job" / "journal.bin"
    begun = time.perf_counter()
    process = _start(package, table, out)
    while not journal.exists() or journal.stat().st_size <= JOURNAL_HEADER_BYTES:
        assert process.poll() is None
        time.sleep(POLL_S)
    seconds = time.perf_counter() - begun
    process.terminate()
    process.wait()
    return seconds


def ray(
    package: Path, table: Path, folder: Path, run: int, address: str | None
) -> dict[str, float]:
    """Seconds of the whole command with each engine; they take turns to be first."""
    seconds = {}
    for engine in ("local", "ray") if run % 2 else ("ray", "local"):
        begun = time.perf_counter()
        asked = (
            "--engine",
            engine,
            *(("--ray-address", address) if engine == "ray" and address else ()),
        )
        assert _start(package, table, folder / f"{engine}.parquet", *asked).wait() == 0
        seconds[engine] = time.perf_counter() - begun
    assert (folder / "ray.parquet").read_bytes() == (folder / "local.parquet").read_bytes()
    return seconds
