"""Drills of workers: killed, stopped, out of memory, in a crash loop, without descriptors."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.drills.ground import Load, Server, serving, wait

NOTICED_S = 10.0
"""The bound for finding a fault, and for being whole again after it is found."""


def killed_worker(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """Kill -9 of a worker under load."""
    with serving(folder, **options) as server, load(server) as asking:
        server.workers()[0].kill()
        noticed_s = wait(lambda: bool(server.said("killed by SIGKILL (killed)")))
        whole_s = noticed_s + server.wait_ready()
        assert server.metric('loupe_worker_restarts_total{reason="killed"}') == 1
        return _report(asking, noticed_s, whole_s, lost=2)


def stopped_worker(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """SIGSTOP of a worker for 20 s under load."""
    with serving(folder, **options) as server, load(server) as asking:
        victim = server.workers()[0]
        victim.suspend()
        began = time.monotonic()
        noticed_s = wait(lambda: bool(server.said("gave no sign of life")))
        assert server.said("(it is stopped, as by SIGSTOP)")
        wait(lambda: bool(server.said("(silent); it is replaced")))
        server.wait_ready()
        whole_s = time.monotonic() - began
        time.sleep(max(0.0, 20.0 - (time.monotonic() - began)))
        assert not victim.is_running()
        assert server.metric('loupe_worker_restarts_total{reason="silent"}') == 1
        # What the stopped worker had accepted is lost with it.
        return _report(asking, noticed_s, whole_s, lost=3)


def out_of_memory(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """A photo of 24 megapixels that exceeds the memory limit of the cgroup."""
    group = _memory_group()
    if group is None:
        return {"skipped": "no cgroup whose memory can be limited here"}
    join = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
    try:
        with serving(folder, prefix=join, **options) as server:
            used = _read(group, "memory.usage_in_bytes", "memory.current")
            _limit(group, used + (24 << 20))
            big = _big_photo()
            began = time.monotonic()
            while not server.said("(out_of_memory)"):
                assert time.monotonic() - began < 60.0, "the kernel killed nobody"
                try:
                    httpx.post(f"{server.url}/v1/classify", content=big, trust_env=False)
                except httpx.TransportError:
                    time.sleep(0.05)
            _limit(group, 4 << 30)
            whole_s = server.wait_ready()
            return {"said": server.said("(out_of_memory)")[0], "whole_s": whole_s}
    finally:
        _remove(group)


def crash_loop(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """Every worker is killed as soon as it starts."""
    server = Server(folder, **options)
    began = time.monotonic()
    try:
        while server.process.poll() is None:
            assert time.monotonic() - began < 60.0, "it goes on for ever"
            for worker in server.workers():
                worker.kill()
            time.sleep(0.05)
        assert server.process.returncode == 1
        assert server.said("the server gives up")
        assert server.left() == []
        return {"gave_up_s": time.monotonic() - began, "said": server.said("gives up")[0]}
    finally:
        server.end()


def few_descriptors(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """64 descriptors for each process, and 200 connections that say nothing."""
    few = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    with serving(folder, prefix=few, **options) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        with load(server) as asking:
            time.sleep(3.0)
            assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
        for connection in silent:
            connection.close()
        with load(server) as afterwards:
            time.sleep(2.0)
        assert afterwards.outcomes["answered"] == afterwards.outcomes.total()
        assert server.metric('loupe_workers{state="ready"}') == 2
        return {
            "during": dict(asking.outcomes),
            "afterwards": dict(afterwards.outcomes),
            "said": [line[:60] for line in server.said("connections are open")][:1],
        }


def _report(asking: Load, noticed_s: float, whole_s: float, *, lost: int) -> dict[str, Any]:
    """The figures. At most *lost* requests were in the hands of the worker."""
    assert noticed_s < NOTICED_S, noticed_s
    outcomes = dict(asking.outcomes)
    failed = sum(number for name, number in outcomes.items() if name != "answered")
    assert failed <= lost, outcomes
    return {"noticed_s": noticed_s, "whole_s": whole_s, "requests": outcomes}


def _memory_group() -> Path | None:
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = root / f"loupe-drill-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if any((group / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
            return group
        group.rmdir()
    return None


def _read(group: Path, *names: str) -> int:
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def _limit(group: Path, size: int) -> None:
    for name in ("memory.limit_in_bytes", "memory.max"):
        if (group / name).exists():
            (group / name).write_text(str(size))


def _remove(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    wait(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def _big_photo() -> bytes:
    import io

    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.zeros((4000, 6000, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()
