"""Drills of full disks: real ones, small file systems in memory."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.drills.ground import serving


def full_from_the_start(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """The temporary folder has 64 KiB: too little for the metrics of one worker."""
    if (why := _mount(folder / "tmp", "64k")) is not None:
        return {"skipped": why}
    with serving(folder, **options) as server, load(server) as asking:
        time.sleep(3.0)
        said = server.said("there is no room for this worker's metrics")
        assert len(said) == 2, said
        assert asking.outcomes["answered"] == asking.outcomes.total(), asking.outcomes
        assert server.metric("loupe_batch_size_count") > 0, "each worker shows its own"
        return {"said": said[0], "requests": dict(asking.outcomes)}


def filled_while_running(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """The temporary folder is filled under load, and a worker is killed then."""
    if (why := _mount(folder / "tmp", "16m")) is not None:
        return {"skipped": why}
    with serving(folder, **options) as server, load(server) as asking:
        _fill(folder / "tmp" / "rubbish")
        time.sleep(2.0)
        assert asking.outcomes["answered"] == asking.outcomes.total(), asking.outcomes
        server.workers()[0].kill()
        time.sleep(1.0)
        whole_s = server.wait_ready()
        (folder / "tmp" / "rubbish").unlink()
        counted = server.metric('loupe_requests_total{code="200",route="/v1/classify"}')
        assert counted > 0
        return {"whole_s": whole_s, "requests": dict(asking.outcomes)}


def full_log(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """The log is on a disk that is full for a while."""
    (folder / "tmp").mkdir(parents=True)
    if (why := _mount(folder, "1m")) is not None:
        return {"skipped": why}
    with serving(folder, **options) as server:
        _fill(folder / "rubbish")
        with load(server) as asking:
            time.sleep(3.0)
            (folder / "rubbish").unlink()
            time.sleep(2.0)
        assert asking.outcomes["answered"] == asking.outcomes.total(), asking.outcomes
        text = server.log_file.read_text(encoding="utf-8", errors="replace")
        assert "lines of the log could not be written" in text
        assert "Traceback" not in text, text[text.find("Traceback") - 400 :][:3000]
        said = [line for line in text.splitlines() if "could not be written" in line]
        return {"said": said[0], "requests": dict(asking.outcomes)}


def _mount(folder: Path, size: str) -> str | None:
    """Why no file system of *size* can be mounted at *folder*; None if it is."""
    if os.geteuid() != 0:
        return "only root can mount a small file system"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() or None


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as rubbish:
        try:
            while True:
                rubbish.write(bytes(4096))
        except OSError:
            pass
