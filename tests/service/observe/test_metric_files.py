"""Files of workers that live, died, or were killed while they put away a colleague's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.atomic_files import locked
from service.observe.metric_files import LOCK_FILE, put_away_dead_workers, samples_of_every_worker
from service.server import patches

WORKER = """
from prometheus_client import Counter, Gauge, Histogram
Counter("asked_total", "Help.", ["route"]).labels("a").inc(3)
Histogram("took_seconds", "Help.", buckets=(1.0, 2.0)).observe(1.5)
Gauge("waiting", "Help.", multiprocess_mode="livesum").set(7)
print(end="ready", flush=True)
input()
"""


def worker(folder: Path) -> subprocess.Popen[str]:
    """A process that has counted, and waits."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(5) == "ready"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def values(folder: Path) -> dict[str, float]:
    """What a scrape says, by name and bucket."""
    found = samples_of_every_worker(folder)
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for metric in found
        for sample in metric.samples
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


COUNTS_OF_ONE = {
    "asked_total": 3.0,
    "took_seconds_bucket1.0": 0.0,
    "took_seconds_bucket2.0": 1.0,
    "took_seconds_sum": 1.5,
}


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory) -> Path:
    """The files of two workers that were killed."""
    folder = tmp_path_factory.mktemp("dead")
    for process in [worker(folder), worker(folder)]:
        end(process)
    assert len(files(folder)) == 6
    return folder


@pytest.fixture
def dead(left_behind, tmp_path) -> Path:
    return Path(shutil.copytree(left_behind, tmp_path / "metrics"))


def times(count: int) -> dict[str, float]:
    """What *count* workers counted."""
    return {name: count * value for name, value in COUNTS_OF_ONE.items()}


def test_a_total_never_falls_and_files_do_not_pile_up(tmp_path):
    for generation in range(1, 4):
        process = worker(tmp_path)
        try:
            found = values(tmp_path)
            assert times(generation).items() <= found.items()
            assert found["waiting"] == 7.0, "gauges of the living alone"
            assert len(files(tmp_path)) <= 3 + 2 + 1
        finally:
            end(process)
    found = values(tmp_path)
    assert times(3).items() <= found.items()
    assert "waiting" not in found
    assert files(tmp_path) == ["counter_0.db", "histogram_0.db", LOCK_FILE]


def test_a_worker_that_starts_puts_the_files_away_though_nobody_scrapes(dead):
    put_away_dead_workers(dead)
    assert files(dead) == ["counter_0.db", "histogram_0.db", LOCK_FILE]
    assert times(2).items() <= values(dead).items()


def test_a_worker_that_starts_does_not_wait_for_a_colleague_that_hangs(dead):
    with locked(dead / LOCK_FILE):
        put_away_dead_workers(dead)
    assert len(list(dead.glob("*.db"))) == 6


class Killed(BaseException):
    """In the place of SIGKILL."""


@pytest.mark.parametrize("step", range(18))
def test_whoever_is_killed_while_putting_away_loses_nothing_and_doubles_nothing(
    dead, monkeypatch, step
):
    """Killed before each of its steps that change the folder, in turn."""
    left = [step]

    def counted(change):
        def instead(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return change(*arguments, **options)

        return instead

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(patches, "write_metric_sums", counted(patches.write_metric_sums))
        with pytest.raises(Killed):
            put_away_dead_workers(dead)
    assert times(2).items() <= values(dead).items()
    assert files(dead) == ["counter_0.db", "histogram_0.db", LOCK_FILE]


def test_a_half_written_sum_is_thrown_away(dead):
    (dead / "counter_0.merged").write_bytes(b"\x00" * 100)
    assert times(2).items() <= values(dead).items()
    assert files(dead) == ["counter_0.db", "histogram_0.db", LOCK_FILE]


def test_files_that_were_only_just_made_are_passed_over(dead):
    (dead / f"counter_{os.getpid()}.db").touch()
    (dead / "histogram_999999.db").touch()
    assert times(2).items() <= values(dead).items()
    assert files(dead) == ["counter_0.db", f"counter_{os.getpid()}.db", "histogram_0.db", LOCK_FILE]
