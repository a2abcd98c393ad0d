"""Killed at any moment and resumed, a job gives what it would have given in one go, row for row and
bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from models.errors import ConfigError, DataError
from tests.service.scoring.jobs import (
    PATIENCE_S,
    command_line,
    environment,
    lines,
    photo,
    run_process,
    score,
    state_files,
    write_photos,
)

COLUMNS = ("--columns", "top_k,probabilities,embedding,abstained,model,sha256", "--lanes", "2")
POLL_S = 0.001


def many(folder: Path, rows: int) -> Path:
    """A table of *rows* rows over a few photos, every 97th of them absent."""
    write_photos(folder, 20)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    table = folder / "list.csv"
    text = "".join(
        f"{'gone.png' if row % 97 == 5 else names[row % 20]},{row}\n" for row in range(rows)
    )
    table.write_text(f"path,id\n{text}", encoding="utf-8")
    return table


def start(*arguments: object, store: Path, cwd: Path) -> subprocess.Popen[bytes]:
    log = (cwd / "log").open("ab")
    with log:
        return subprocess.Popen(
            command_line(*arguments, store=store),
            cwd=cwd,
            env=environment(),
            stdout=log,
            stderr=log,
            # A shell that runs the tests in the background has it ignored, and children inherit
            # that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )


def wait_until_written(process: subprocess.Popen[bytes], journal: Path, size: int) -> None:
    """Return once *journal* has *size* bytes, or the process ended."""
    begun = time.monotonic()
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < size):
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(POLL_S)


def watched(process: subprocess.Popen[bytes], journal: Path) -> int:
    """The last size that *journal* was seen to have before the process ended well."""
    size = 0
    while process.poll() is None:
        wait_until_written(process, journal, size + 1)
        size = journal.stat().st_size if journal.exists() else size
    assert process.returncode == 0
    return size


def kill_and_resume(tmp_path: Path, store: Path, *, rows: int, kills: int, seed: int) -> None:
    """Assert that a job killed *kills* times equals the uninterrupted one."""
    table = many(tmp_path / "in", rows)
    whole_bytes = watched(
        start(table, "whole.jsonl", *COLUMNS, store=store, cwd=tmp_path),
        tmp_path / "whole.jsonl.job" / "journal.bin",
    )
    rng = random.Random(seed)
    journal = tmp_path / "out.jsonl.job" / "journal.bin"
    killed = 0
    for kill in range(kills):
        process = start(table, "out.jsonl", "--resume", *COLUMNS, store=store, cwd=tmp_path)
        aim = int(0.95 * whole_bytes * (kill + rng.random()) / kills)
        wait_until_written(
            process, journal, max(aim, journal.stat().st_size if journal.exists() else 0)
        )
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(PATIENCE_S) == -signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists() or killed <= kill
    assert killed == kills, (tmp_path / "log").read_text()
    done = run_process(table, "out.jsonl", "--resume", *COLUMNS, store=store, cwd=tmp_path)
    assert "of them before" in done.stdout
    for name in ("jsonl", "failed.jsonl"):
        assert (tmp_path / f"out.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    one, other = (
        json.loads((tmp_path / f"{name}.summary.json").read_text()) for name in ("out", "whole")
    )
    assert {**one, "output": ""} == {**other, "output": ""}
    ids = [
        row["id"] for name in ("out.jsonl", "out.failed.jsonl") for row in lines(tmp_path / name)
    ]
    assert sorted(map(int, ids)) == list(range(rows))
    assert state_files(tmp_path / "out.jsonl") == set()


@pytest.mark.slow
def test_a_job_killed_twice_and_resumed_equals_the_uninterrupted_one(tmp_path, store):
    kill_and_resume(tmp_path, store, rows=4000, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_killed_ten_times_and_resumed_equals_the_uninterrupted_one(tmp_path, store):
    kill_and_resume(tmp_path, store, rows=40_000, kills=10, seed=2)


def interrupted(tmp_path: Path, store: Path, photos: Path) -> Path:
    """The output of a job that stopped half-way: its journal holds 128 of 200 images."""
    (photos / "a" / "x.png").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    assert score(photos, out, "--max-failures", "0", store=store).exit_code == 3
    return out


def test_an_interrupted_job_is_neither_forgotten_nor_mixed_with_another(photos, tmp_path, store):
    out = interrupted(tmp_path, store, photos)
    with pytest.raises(
        ConfigError,
        match=(
            r"out.jsonl.job holds an interrupted job: continue with --resume, or start again"
            r" with --overwrite"
        ),
    ):
        score(photos, out, store=store)
    with pytest.raises(
        ConfigError,
        match=(
            r"holds another job: top_k was 5 and is now 3. Ask for the same, or start again"
            r" with --overwrite"
        ),
    ):
        score(photos, out, "--resume", "--top-k", "3", store=store)
    assert score(photos, out, "--resume", store=store).exit_code == 0
    assert len(lines(out)) == 200


def test_an_input_that_changed_in_what_is_done_is_refused(photos, tmp_path, store):
    out = interrupted(tmp_path, store, photos)
    (photos / "a" / "0001.png").write_bytes(photo(1))
    with pytest.raises(
        DataError,
        match=(
            r"photos is not what it was when the job was begun: other, more or fewer rows among the"
            r" first"
        ),
    ):
        score(photos, out, "--resume", store=store)
    (photos / "a" / "0001.png").unlink()
    assert score(photos, out, "--resume", store=store).exit_code == 0


def test_resume_of_what_was_not_begun_begins_and_of_what_is_done_changes_nothing(
    photos, tmp_path, store
):
    out = tmp_path / "out.jsonl"
    assert score(photos, out, "--resume", store=store).exit_code == 0
    first = out.stat()
    done = score(photos, out, "--resume", store=store)
    assert done.exit_code == 0
    assert "the job is complete already" in done.output
    assert out.stat() == first
    with pytest.raises(
        ConfigError,
        match=(
            r"the job is finished: .*out.jsonl has the 200 of 200 images that were scored. Score"
            r" them again with --ov"
        ),
    ):
        score(photos, out, store=store)
    with pytest.raises(
        ConfigError,
        match=(
            r"out.jsonl exists already and is not of this job; replace it with --overwrite, or"
            r" choose another --out"
        ),
    ):
        score(photos, out, "--resume", "--top-k", "2", store=store)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_says_how_to_go_on_and_leaves_no_process(tmp_path, store, number, status):
    table = many(tmp_path / "in", 20_000)
    process = start(table, "out.jsonl", *COLUMNS, store=store, cwd=tmp_path)
    wait_until_written(process, tmp_path / "out.jsonl.job" / "journal.bin", 100_000)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == status
    assert "the same command with --resume continues" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert {"journal.bin", "job.json"} <= state_files(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting a small file system needs root (CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_ends_the_job_with_status_4_and_loses_nothing(
    tmp_path, store, small_disk
):
    table = many(tmp_path / "in", 3000)
    assert score(table, tmp_path / "whole.jsonl", *COLUMNS, store=store).exit_code == 0
    out = small_disk / "out.jsonl"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(300_000))
    done = score(table, out, *COLUMNS, store=store)
    assert done.exit_code == 4, done.output
    assert (
        "journal.bin: the disk is full. The job's state is kept: free some space and continue"
        " with --resume" in done.output
    )
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = score(table, out, "--resume", *COLUMNS, store=store)
    assert done.exit_code == 0, done.output
    assert "of them before" in done.output
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_disk_that_fills_under_the_output_keeps_the_answers(tmp_path, store, small_disk):
    table = many(tmp_path / "in", 3000)
    out = small_disk / "out.jsonl"
    done = score(table, out, "--state", tmp_path / "state", *COLUMNS, store=store)
    assert done.exit_code == 4, done.output
    assert "out.jsonl: the disk is full" in done.output
    assert sorted(path.name for path in small_disk.iterdir()) == [
        "out.failed.jsonl",
        "out.summary.json",
    ]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = score(table, out, "--state", tmp_path / "state", "--resume", *COLUMNS, store=store)
    assert "(3,000 of them before)" in done.output
    assert len(lines(out)) + len(lines(small_disk / "out.failed.jsonl")) == 3000


def test_an_input_folder_that_goes_away_ends_the_job_with_status_4(tmp_path, store):
    table = many(tmp_path / "in", 60_000)
    process = start(table, tmp_path / "out.jsonl", *COLUMNS, store=store, cwd=tmp_path)
    journal = tmp_path / "out.jsonl.job" / "journal.bin"
    wait_until_written(process, journal, 100_000)
    os.rename(tmp_path / "in", tmp_path / "elsewhere")  # noqa: PTH104
    assert process.wait(PATIENCE_S) == 4
    assert "list.csv is gone:" in (tmp_path / "log").read_text()
    os.rename(tmp_path / "elsewhere", tmp_path / "in")  # noqa: PTH104
    assert {"journal.bin", "job.json"} <= state_files(tmp_path / "out.jsonl")
