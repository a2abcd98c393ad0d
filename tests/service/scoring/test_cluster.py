"""The Ray engine on a real cluster of two nodes on loopback: the same output as the local engine, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.scoring.jobs import command_line, environment, failures, lines, score, state_files
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
    with log, subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment(**QUIET), **pipes) as process:
        address = process.stdout.readline().strip()
        assert address, (tmp_path / "cluster.log").read_text()
        yield TwoNodes(process, address)
        process.stdin.close()
        process.wait(PATIENCE_S)


def run_ray(*arguments: object, store: Path, cwd: Path, wait: bool = True) -> subprocess.Popen[str]:
    """The job on Ray, by default ended."""
    command = command_line(*arguments, "--engine", "ray", store=store)
    process = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        try:
            process.output, process.errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process


def test_two_nodes_give_what_one_process_gives_and_take_over_what_it_began(tmp_path, store, cluster):
    table = many(tmp_path / "in", 2000)
    assert score(table, tmp_path / "local.jsonl", *COLUMNS, store=store).exit_code == 0
    assert score(table, tmp_path / "ray.jsonl", *COLUMNS, "--max-failures", "3", store=store).exit_code == 3
    done = run_ray(table, "ray.jsonl", *COLUMNS, "--ray-address", cluster.address, "--resume", store=store, cwd=tmp_path)
    assert done.returncode == 0, done.errors
    assert "of them before" in done.output
    for name in ("jsonl", "failed.jsonl"):
        assert (tmp_path / f"ray.{name}").read_bytes() == (tmp_path / f"local.{name}").read_bytes()
    assert state_files(tmp_path / "ray.jsonl") == set()


def test_a_node_that_is_lost_costs_no_row(tmp_path, store, cluster):
    table = many(tmp_path / "in", 12_000)
    assert score(table, tmp_path / "local.jsonl", *COLUMNS, store=store).exit_code == 0
    process = run_ray(table, "ray.jsonl", *COLUMNS, "--ray-address", cluster.address, store=store, cwd=tmp_path, wait=False)
    wait_until_written(process, tmp_path / "ray.jsonl.job" / "journal.bin", 100_000)
    cluster.lose_one()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_a_cluster_of_its_own_handles_dirt_and_leaves_no_process(tmp_path, store):
    import psutil

    folder = many(tmp_path / "in", 1).parent
    (folder / "empty.jpg").touch()
    (folder / "x.jpg").mkdir()
    done = run_ray(folder, "out.jsonl", store=store, cwd=tmp_path)
    assert done.returncode == 0, done.errors
    assert "Traceback" not in done.errors
    assert {path: code for path, (code, _) in failures(tmp_path / "out.jsonl").items()} == {
        str(folder / "empty.jpg"): "empty_body",
        str(folder / "x.jpg"): "is_a_directory",
    }
    assert len(lines(tmp_path / "out.jsonl")) == 20
    assert [process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == done.pid] == []


def test_a_cluster_that_is_not_there_is_named(tmp_path, store):
    done = run_ray(many(tmp_path / "in", 1), "out.csv", "--ray-address", "127.0.0.1:1", store=store, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: no Ray cluster at 127.0.0.1:1" in done.errors
    assert "Traceback" not in done.errors
