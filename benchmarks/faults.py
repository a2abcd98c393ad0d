"""Failure drills: what a real server does when it is killed, stopped, starved or cut off.

    .venv/bin/python -m benchmarks.faults [--only NAME] [--out FILE]

Each drill starts `loupe serve` with two workers and MobileNetV3-small of random weights, has
clients ask without a pause, does one thing to the server, and checks what it says it measures.
As root on Linux, the drills run in a mount namespace of their own, where small file systems
are the full disks. Exit status 1 if a drill fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.drills import disks, ends, workers
from benchmarks.drills.ground import Load, Server
from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, versions, write
from models.store.store import Store
from service.engine.classifier import Classifier

DRILLS: tuple[Callable[..., dict[str, Any]], ...] = (
    workers.killed_worker,
    workers.stopped_worker,
    workers.out_of_memory,
    workers.crash_loop,
    workers.few_descriptors,
    ends.sigterm_under_load,
    ends.sigterm_with_stopped_worker,
    ends.supervisor_killed_starting,
    ends.supervisor_killed_running,
    ends.supervisor_killed_with_stopped_worker,
    ends.supervisor_killed_draining,
    disks.full_from_the_start,
    disks.filled_while_running,
    disks.full_log,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status, after all drills."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="loupe-faults-", ignore_cleanup_errors=True) as place:
        root = Path(place)
        store = Store(root / "store")
        package = build_network_package(root / "package", network="mobilenet_v3_small")
        store.publish(package, name="net")
        photo = next((package / "golden").glob("*.jpg")).read_bytes()
        (answer,) = Classifier.open(package, threads=1).classify([photo], top_k=1)
        label = answer.predictions[0].label

        def load(server: Server) -> Load:
            return Load(server.url, photo, label=label)

        chosen = [one for one in DRILLS if options.only in one.__name__]
        results: dict[str, Any] = {}
        report = {
            "command": command("faults", arguments),
            "machine": machine(),
            "versions": versions(),
            "drills": results,
        }
        for one in chosen:
            drill = partial(one, root / one.__name__, load=load, store=store.root)
            results[one.__name__] = run(drill, one) | {"load_average": os.getloadavg()[0]}
            # After each one, so that an end in between loses nothing.
            write(report, options.out)
    failed = [name for name, found in results.items() if "failed" in found]
    print(f"{len(results) - len(failed)} of {len(results)} drills passed", *failed)
    return int(bool(failed))


def run(drill: Callable[[], dict[str, Any]], of: Callable[..., object]) -> dict[str, Any]:
    """What *drill* found, or why it failed."""
    what = (of.__doc__ or "").splitlines()[0]
    print(f"{of.__name__}: {what}", flush=True)
    try:
        found = drill()
    except Exception as error:  # noqa: BLE001 - the other drills go on
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    rounded = {
        name: round(value, 2) if isinstance(value, float) else value
        for name, value in found.items()
    }
    print(f"    {rounded}", flush=True)
    return {"what": what, **rounded}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a drill's name")
    parser.add_argument("--out", type=Path, default=results_file("faults"))
    return parser.parse_args(arguments)


def in_own_namespace() -> int | None:
    """Exit status of the drills in a mount namespace of their own; None if there is none."""
    if os.geteuid() != 0 or "--inside" in sys.argv:
        return None
    again = [sys.executable, "-m", "benchmarks.faults", *sys.argv[1:], "--inside"]
    return subprocess.run(["unshare", "--mount", *again], check=False).returncode


if __name__ == "__main__":
    done = in_own_namespace()
    if done is None:
        done = main([one for one in sys.argv[1:] if one != "--inside"])
    sys.exit(done)
