"""The Ray engine on a real cluster of two nodes on loopback: the same output as the local engine,
to the last bit.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.scoring.jobs import command_line, environment, failures, score, state_files
from tests.service.scoring.test_resume import many, wait_until_written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE_S = 240.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
CLUSTER = """
import ray, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(second, allow_graceful=False)
    print("removed", flush=True)
cluster.shutdown()
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
COLUMNS = ("--columns", "top_k,probabilities,embedding,abstained,model,sha256")


@dataclass
class TwoNodes:
    """A cluster of two nodes with a core each."""

    process: subprocess.Popen[str]
    address: str

    def lose_one(self) -> None:
        """Kill the second node."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"


@pytest.fixture
def cluster(tmp_path) -> Iterator[TwoNodes]:
    log = (tmp_path / "cluster.log").open("wb")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER], env=environment(**QUIET), **pipes
        ) as process,
    ):
        address = process.stdout.readline().strip()
        assert address, (tmp_path / "cluster.log").read_text()
        yield TwoNodes(process, address)
        process.stdin.close()
        process.wait(PATIENCE_S)


def run_ray(
    *arguments: object, store: Path, cwd: Path, wait: bool = True, **settings: str
) -> subprocess.Popen[str]:
    """The job on Ray, by default ended."""
    command = command_line(*arguments, "--engine", "ray", store=store)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        try:
            process.output, process.errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process


def test_two_nodes_give_what_one_process_gives_and_take_over_what_it_began(
    tmp_path, store, cluster
):
    table = many(tmp_path / "in", 2000)
    assert score(table, tmp_path / "local.jsonl", *COLUMNS, store=store).exit_code == 0
    assert (
        score(table, tmp_path / "ray.jsonl", *COLUMNS, "--max-failures", "3", store=store).exit_code
        == 3
    )
    done = run_ray(
        table,
        "ray.jsonl",
        *COLUMNS,
        "--ray-address",
        cluster.address,
        "--resume",
        store=store,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.errors
    assert "of them before" in done.output
    for name in ("jsonl", "failed.jsonl"):
        assert (tmp_path / f"ray.{name}").read_bytes() == (tmp_path / f"local.{name}").read_bytes()
    assert state_files(tmp_path / "ray.jsonl") == set()


ODD = (
    r'{"path": "a/0000.png", "id": 18446744073709551616, "note": "\ud800", "Path": NaN}',
    r'{"path": "\ud800.png", "id": 1}',
    r'{"path": "nope://x/1.png", "prediction": [1, NaN]}',
    r'{"path": "gone.png"}',
    r'{"path": 7}',
    r'{"path": "b/0001.png", "a": 1, "a": 2}',
    r"no JSON",
)


def test_odd_rows_have_the_same_answers_and_reasons_on_a_cluster(tmp_path, store, cluster):
    many(tmp_path / "in", 1)
    table = tmp_path / "in" / "list.jsonl"
    table.write_text(
        "\n".join(
            [
                *ODD,
                *(f'{{"path": "a/{2 * (row % 10):04d}.png", "id": {row}}}' for row in range(300)),
                *ODD,
            ]
        )
        + "\n"
    )
    assert score(table, tmp_path / "local.jsonl", *COLUMNS, store=store).exit_code == 0
    done = run_ray(
        table, "ray.jsonl", *COLUMNS, "--ray-address", cluster.address, store=store, cwd=tmp_path
    )
    assert done.returncode == 0, done.errors
    for name in ("jsonl", "failed.jsonl"):
        assert (tmp_path / f"ray.{name}").read_bytes() == (tmp_path / f"local.{name}").read_bytes()
    assert len(failures(tmp_path / "ray.jsonl")) >= 6


def test_a_node_that_is_lost_costs_no_row(tmp_path, store, cluster):
    table = many(tmp_path / "in", 40_000)
    assert score(table, tmp_path / "local.jsonl", *COLUMNS, store=store).exit_code == 0
    process = run_ray(
        table,
        "ray.jsonl",
        *COLUMNS,
        "--ray-address",
        cluster.address,
        store=store,
        cwd=tmp_path,
        wait=False,
    )
    wait_until_written(process, tmp_path / "ray.jsonl.job" / "journal.bin", 100_000)
    cluster.lose_one()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_a_cluster_of_its_own_handles_dirt_and_leaves_no_process(tmp_path, store):
    import psutil

    # So many that there is work left when the cluster is there.
    table = many(tmp_path / "in", 60_000)
    (table.parent / "empty.jpg").touch()
    (table.parent / "x.jpg").mkdir()
    with table.open("a", encoding="utf-8") as stream:
        stream.write("empty.jpg,60000\nx.jpg,60001\n")
    assert score(table, tmp_path / "local.jsonl", store=store).exit_code == 0
    done = run_ray(table, "out.jsonl", store=store, cwd=tmp_path)
    assert done.returncode == 0, done.errors
    assert "before its Ray cluster had begun" not in done.errors
    assert "Traceback" not in done.errors
    codes = {path: code for path, (code, _) in failures(tmp_path / "out.jsonl").items()}
    assert codes == {"gone.png": "not_found", "empty.jpg": "empty_body", "x.jpg": "is_a_directory"}
    for name in ("jsonl", "failed.jsonl"):
        assert (tmp_path / f"out.{name}").read_bytes() == (tmp_path / f"local.{name}").read_bytes()
    assert [
        process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == done.pid
    ] == []


def test_a_job_done_before_its_own_cluster_says_so(tmp_path, store):
    done = run_ray(many(tmp_path / "in", 1), "out.csv", store=store, cwd=tmp_path)
    assert done.returncode == 0, done.errors
    assert "the job was done before its Ray cluster had begun" in done.errors


@pytest.fixture
def guarded(tmp_path) -> Iterator[str]:
    """The address of a cluster begun by hand on loopback, which wants the token `TOKEN`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
    ]
    command += ["--num-cpus=2", "--include-dashboard=false"]
    log = (tmp_path / "cluster.log").open("wb")
    with (
        log,
        subprocess.Popen(
            command,
            env=environment(**QUIET, **TOKEN),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert any("Ray runtime started" in line for line in process.stdout), (
            tmp_path / "cluster.log"
        ).read_text()
        yield f"127.0.0.1:{port}"
        process.terminate()
        process.wait(PATIENCE_S)


def test_a_cluster_that_wants_a_token_refuses_within_seconds_and_takes_the_token(
    tmp_path, store, guarded
):
    table = many(tmp_path / "in", 500)
    begun_s = time.monotonic()
    refused = run_ray(
        table, "ray.jsonl", "--ray-address", guarded, store=store, cwd=tmp_path, HOME=str(tmp_path)
    )
    assert time.monotonic() - begun_s < 15.0, "Ray's own patience is 20 s"
    assert refused.returncode == 1
    assert f"error: the Ray cluster at {guarded} wants a token" in refused.errors
    assert "Set RAY_AUTH_MODE=token" in refused.errors
    assert state_files(tmp_path / "ray.jsonl") == set()
    done = run_ray(table, "ray.jsonl", "--ray-address", guarded, store=store, cwd=tmp_path, **TOKEN)
    assert done.returncode == 0, done.errors
    assert score(table, tmp_path / "local.jsonl", store=store).exit_code == 0
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


PIPELINE = """
import os, sys
import ray, ray.data
from models.errors import ScoringError
from service.scoring.compute import ray_pipeline
from service.scoring.input.items import Item, Unit
from service.scoring.output.journal import encode
from service.scoring.compute.ray_actor import RayJob, result_row, unit_in
from service.scoring.compute.unit import Record, ScoringOptions
class ScoringActor:
    def __init__(self, job, packed):
        assert packed() == b"package"
        self.decodes = job.provider == "cpu"
    def __call__(self, row):
        unit = unit_in(row)
        if unit.items[0].path == "fatal":
            os._exit(1)
        if unit.items[0].path == "lost":
            return result_row(lost="the disk is gone")
        assert ("pixels" in row) != self.decodes
        return result_row(encode(Record(unit.index, 0, "", [], [], {})))
class DecodeTask:
    def __init__(self, job):
        pass
    def __call__(self, row):
        return row | {"pixels": bytes(2**20)}
ray_pipeline.ScoringActor, ray_pipeline.DecodeTask = ScoringActor, DecodeTask
ray_pipeline.UNITS_PER_RUN = 4
gpu = sys.argv[1] == "gpu"
ray.init(
    address="local", num_cpus=2, num_gpus=int(gpu), include_dashboard=False, log_to_driver=False
)
if sys.argv[1] == "fatal":
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = 45
job = RayJob(
    base="",
    max_image_bytes=1,
    spec=None,
    precision="fp32",
    provider="cuda" if gpu else "cpu",
    options=ScoringOptions(),
)
lines = ray_pipeline.RayDataPipeline(ray=ray, job=job, packed=lambda: b"package", say=print)
units = (Unit(index, index, (Item(sys.argv[1] if index == 6 else ""),), "") for index in range(9))
try:
    for record in lines.begin(units):
        print(record.unit, flush=True)
except ScoringError as error:
    print("refused:", type(error).__name__, error)
"""


def answers_of_the_pipeline(seventh: str) -> list[str]:
    command = [sys.executable, "-c", PIPELINE, seventh]
    done = subprocess.run(
        command,
        env=environment(**QUIET),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    # Ray writes between the lines.
    found = [
        line
        for line in done.stdout.splitlines()
        if line.isdecimal() or line.startswith("refused: ")
    ]
    assert found, done.stderr
    return found


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_job_of_several_runs_of_ray_data_keeps_its_order(kind):
    assert answers_of_the_pipeline(kind) == [str(index) for index in range(9)]


def test_an_image_that_ends_every_worker_ends_the_job():
    *before, last = answers_of_the_pipeline("fatal")
    assert before[:4] == ["0", "1", "2", "3"]
    assert last.startswith("refused: ScoringError Ray gave up: ")
    assert "no progress" in last


def test_a_storage_that_is_gone_reaches_the_driver_as_that():
    *before, last = answers_of_the_pipeline("lost")
    assert before[:4] == ["0", "1", "2", "3"]
    assert last == "refused: StorageLost the disk is gone"


def test_a_cluster_that_is_not_there_is_named(tmp_path, store):
    done = run_ray(
        many(tmp_path / "in", 1),
        "out.csv",
        "--ray-address",
        "127.0.0.1:1",
        store=store,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "error: no Ray cluster at 127.0.0.1:1" in done.errors
    assert "Traceback" not in done.errors
