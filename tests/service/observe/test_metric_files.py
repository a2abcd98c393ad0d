"""Files of workers that live, died and were started again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.observe.metric_files import FIRST_BYTES, samples_of_every_worker

WORKER = """
import pathlib, sys
from service.observe.metric_files import claim_slot
claim_slot(pathlib.Path(sys.argv[1]))
from prometheus_client import Counter, Gauge, Histogram
Counter("asked_total", "Help.", ["route"]).labels("a").inc(3)
Histogram("took_seconds", "Help.", buckets=(1.0, 2.0)).observe(1.5)
Gauge("waiting", "Help.", multiprocess_mode="livesum").inc(7)
print(end="ready", flush=True)
input()
"""


def worker(folder: Path) -> subprocess.Popen[str]:
    """A process that has counted, and waits."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
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
    return sorted(path.name for path in folder.glob("*.db"))


COUNTS_OF_ONE = {
    "asked_total": 3.0,
    "took_seconds_bucket1.0": 0.0,
    "took_seconds_bucket2.0": 1.0,
    "took_seconds_sum": 1.5,
}
FILES_OF_ONE = [
    "counter_0.db",
    "gauge_livemax_0.db",
    "gauge_livesum_0.db",
    "histogram_0.db",
]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory) -> Path:
    """The files of two workers that were killed."""
    folder = tmp_path_factory.mktemp("dead")
    for process in [worker(folder), worker(folder)]:
        end(process)
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
            assert found["waiting"] == 7.0, "a gauge starts again"
            assert files(tmp_path) == FILES_OF_ONE
        finally:
            end(process)
    found = values(tmp_path)
    assert times(3).items() <= found.items()
    assert "waiting" not in found, "gauges of the living alone"


def test_workers_that_live_side_by_side_add_up(tmp_path):
    processes = [worker(tmp_path) for _ in range(3)]
    try:
        assert (times(3) | {"waiting": 21.0}).items() <= values(tmp_path).items()
        end(processes[1])
        assert (times(3) | {"waiting": 14.0}).items() <= values(tmp_path).items()
        processes[1] = worker(tmp_path)
        assert (times(4) | {"waiting": 21.0}).items() <= values(tmp_path).items()
        assert len(files(tmp_path)) == 3 * len(FILES_OF_ONE)
    finally:
        for process in processes:
            end(process)


def test_files_that_were_only_just_made_are_passed_over(dead):
    before = values(dead)
    (dead / "counter_7.db").touch()
    (dead / "gauge_livesum_7.db").touch()
    assert values(dead) == before


FULL = """
import pathlib, resource, sys
from service.observe import metric_files
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
metric_files.claim_slot(pathlib.Path(sys.argv[1]))
from prometheus_client import Counter
asked = Counter("asked_total", "Help.", ["route"])
for number in range(int(sys.argv[3])):
    asked.labels(f"{number:04}").inc()
found = metric_files.samples_of_every_worker(pathlib.Path(sys.argv[1]))
print(sum(one.value for metric in found for one in metric.samples if one.name == "asked_total"))
"""


def count_where_files_end_at(size: int, folder: Path, *, series: int) -> tuple[str, str]:
    """What a worker counts and logs whose files cannot grow above *size* bytes.

    To `posix_fallocate` it is a full disk.
    """
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), str(size), str(series)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_without_room_for_files_a_worker_counts_in_its_memory_and_says_so_once(tmp_path):
    counted, log = count_where_files_end_at(FIRST_BYTES - 1, tmp_path, series=3)
    assert counted == "3.0"
    assert log.count("\n") == 1
    assert "there is no room for this worker's metrics (" in log


def test_a_file_grows_by_bytes_that_are_allocated(tmp_path):
    counted, log = count_where_files_end_at(1 << 24, tmp_path, series=4000)
    assert (counted, log) == ("4000.0", "")
    grown = (tmp_path / "counter_0.db").stat()
    assert grown.st_size == 2 * FIRST_BYTES
    assert grown.st_blocks * 512 >= grown.st_size, "holes end the process on a full disk"


def test_without_room_to_grow_new_series_are_left_out_and_the_worker_goes_on(tmp_path):
    counted, log = count_where_files_end_at(FIRST_BYTES, tmp_path, series=4000)
    assert 1000 < float(counted) < 4000
    assert log.count("\n") == 1
    assert (tmp_path / "counter_0.db").stat().st_size == FIRST_BYTES
