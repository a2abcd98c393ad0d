"""Drills of the end: SIGTERM, and a supervisor that is killed at any moment of its life."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.drills.ground import Server, gone, serving, wait

DRAIN_S = 3.0
"""LOUPE_DRAIN_TIMEOUT_S of the drills."""
MARGIN_S = 5.0
"""More than a killed supervisor's workers have to close their models."""
STARTING_S = (0.0, 0.02, 0.1, 0.4, 1.0, 2.5)
"""After the first worker process appeared."""


def sigterm_under_load(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """SIGTERM under load: what was accepted is answered."""
    with serving(folder, drain_delay_s=1, **options) as server:
        family = server.family()
        with load(server) as asking:
            server.process.terminate()
            gone_s = gone(family)
        assert server.process.wait() == 0
        assert server.left() == []
        assert asking.outcomes["lost"] == asking.outcomes["wrong"] == 0, asking.outcomes
        return {"gone_s": gone_s, "requests": dict(asking.outcomes)}


def sigterm_with_stopped_worker(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """SIGTERM under load, and a worker that is stopped while it drains."""
    with serving(folder, drain_delay_s=1, **options) as server:
        family = server.family()
        with load(server):
            victim = server.workers()[0]
            server.process.terminate()
            time.sleep(0.3)
            victim.suspend()
            gone_s = gone(family)
        assert gone_s < DRAIN_S + 1.0 + MARGIN_S, gone_s
        assert server.said("did not end within 4 s (it is stopped, as by SIGSTOP)")
        assert server.left() == []
        return {"gone_s": gone_s, "bound_s": DRAIN_S + 1.0}


def supervisor_killed_starting(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """Kill -9 of the supervisor at six moments after it started its first worker."""
    slowest_s = 0.0
    for moment_s in STARTING_S:
        server = Server(folder / f"{moment_s:g}", **options)
        wait(lambda server=server: bool(server.workers()))
        time.sleep(moment_s)
        family = server.family()
        server.process.kill()
        server.process.wait()
        slowest_s = max(slowest_s, gone(family))
        assert slowest_s < DRAIN_S + MARGIN_S, (moment_s, slowest_s)
    return {"moments_s": STARTING_S, "slowest_gone_s": slowest_s}


def supervisor_killed_running(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """Kill -9 of the supervisor under load; the next server clears up after it."""
    with serving(folder, **options) as server:
        family = server.family()
        with load(server) as asking:
            server.process.kill()
            server.process.wait()
            gone_s = gone(family)
        assert gone_s < DRAIN_S + MARGIN_S, gone_s
        outcomes = dict(asking.outcomes)
    with serving(folder, **options) as again:
        assert len(again.left()) == 1, again.left()
        again.process.terminate()
        again.process.wait()
        assert again.left() == []
    return {"gone_s": gone_s, "requests": outcomes}


def supervisor_killed_with_stopped_worker(
    folder: Path, *, load: Any, **options: Any
) -> dict[str, Any]:
    """Kill -9 of the supervisor while one worker is stopped."""
    with serving(folder, **options) as server:
        family = server.family()
        server.workers()[0].suspend()
        server.process.kill()
        server.process.wait()
        gone_s = gone(family)
        assert gone_s < DRAIN_S + MARGIN_S, gone_s
        return {"gone_s": gone_s}


def supervisor_killed_draining(folder: Path, *, load: Any, **options: Any) -> dict[str, Any]:
    """SIGTERM under load, and kill -9 of the supervisor half a second later."""
    with serving(folder, drain_delay_s=2, **options) as server:
        family = server.family()
        with load(server) as asking:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            server.process.kill()
            server.process.wait()
            gone_s = gone(family)
        assert gone_s < DRAIN_S + 2.0 + MARGIN_S, gone_s
        return {"gone_s": gone_s, "requests": dict(asking.outcomes)}
