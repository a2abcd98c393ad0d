"""Buckets, against moto's server: a process of its own that speaks S3 on loopback."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pyarrow.parquet
import pytest

from tests.service.scoring.input.test_inputs import write_tar
from tests.service.scoring.jobs import (
    PATIENCE_S,
    command_line,
    environment,
    failures,
    lines,
    photo,
    run_process,
    score,
    state_files,
)
from tests.service.scoring.test_resume import wait_until_written

POLL_S = 0.05
BUCKET = "photos"
COUNT = 1100
"""More than a page of 1000 keys."""


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def moto(folder: Path, **settings: str) -> Iterator[str]:
    """The address of an S3 server, which logs into *folder*."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with (
        log,
        subprocess.Popen(command, env=environment(**settings), stdout=log, stderr=log) as server,
    ):
        try:
            begun = time.monotonic()
            while not answers(port):
                assert server.poll() is None
                assert time.monotonic() - begun < PATIENCE_S
                time.sleep(POLL_S)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture(scope="module")
def settings(endpoint) -> dict[str, str]:
    """What a user sets to reach it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def client(settings) -> Any:
    """A client of its own, to look from outside."""
    session = botocore.session.Session()
    session.set_credentials(settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])
    return session.create_client(
        "s3", endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1"
    )


@pytest.fixture(scope="module")
def bucket(client) -> str:
    """A bucket with photos in `in/`, the same few over and over."""
    client.create_bucket(Bucket=BUCKET)
    for number in range(COUNT):
        client.put_object(
            Bucket=BUCKET,
            Key=f"in/{number:04d}.png",
            Body=b"" if number == 7 else photo(number % 20),
        )
    client.put_object(Bucket=BUCKET, Key="in/notes.txt", Body=b"text")
    return BUCKET


@pytest.mark.slow
def test_a_bucket_is_scored_into_a_bucket_as_a_folder_into_a_file(
    bucket, client, settings, store, tmp_path
):
    done = run_process(
        f"s3://{bucket}/in",
        f"s3://{bucket}/out/scores.parquet",
        store=store,
        cwd=tmp_path,
        **settings,
    )
    assert f"{COUNT - 1:,} of {COUNT:,} images scored" in done.stdout
    content = client.get_object(Bucket=bucket, Key="out/scores.parquet")["Body"].read()
    rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    assert [row["path"] for row in rows] == [
        f"s3://{bucket}/in/{number:04d}.png" for number in range(COUNT) if number != 7
    ]
    failed = client.get_object(Bucket=bucket, Key="out/scores.failed.jsonl")["Body"].read()
    assert b'"path": "s3://photos/in/0007.png", "code": "empty_body"' in failed
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:04d}.png").write_bytes(b"" if number == 7 else photo(number % 20))
    assert score(folder, tmp_path / "local.parquet", store=store).exit_code == 0
    local = pyarrow.parquet.read_table(tmp_path / "local.parquet").drop_columns("path").to_pylist()
    assert [{name: value for name, value in row.items() if name != "path"} for row in rows] == local
    assert not (tmp_path / "scores.parquet.job").exists()


@pytest.mark.slow
def test_globs_tables_and_archives_lie_in_buckets_too(bucket, client, settings, store, tmp_path):
    client.put_object(
        Bucket=bucket,
        Key="lists/list.csv",
        Body=b"path,id\n../in/0001.png,1\ns3://photos/in/0001.png,2\nmissing.png,3\n",
    )
    client.put_object(
        Bucket=bucket, Key="lists/0.tar", Body=write_tar(tmp_path / "0.tar", 3).read_bytes()
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.png", photo(1))
    client.put_object(Bucket=bucket, Key="lists/1.zip", Body=packed.getvalue())
    run_process(f"s3://{bucket}/in/000*.png", "glob.jsonl", store=store, cwd=tmp_path, **settings)
    assert [row["path"][-8:] for row in lines(tmp_path / "glob.jsonl")] == [
        f"000{n}.png" for n in range(10) if n != 7
    ]
    run_process(
        f"s3://{bucket}/lists/list.csv", "table.jsonl", store=store, cwd=tmp_path, **settings
    )
    assert [row["id"] for row in lines(tmp_path / "table.jsonl")] == ["2"]
    assert {path: code for path, (code, _) in failures(tmp_path / "table.jsonl").items()} == {
        "../in/0001.png": "not_found",
        "missing.png": "not_found",
    }
    run_process(f"s3://{bucket}/lists/1.zip", "zip.jsonl", store=store, cwd=tmp_path, **settings)
    assert [row["path"] for row in lines(tmp_path / "zip.jsonl")] == [
        f"s3://{bucket}/lists/1.zip/1.png"
    ]
    # Its members are no images: each is read and refused by itself.
    done = run_process(
        f"s3://{bucket}/lists/*.tar",
        "tar.jsonl",
        store=store,
        cwd=tmp_path,
        check=False,
        **settings,
    )
    assert done.returncode == 1
    assert "error: none of 3 images could be scored; tar.failed.jsonl says why" in done.stderr
    assert [code for code, _ in failures(tmp_path / "tar.jsonl").values()] == [
        "undecodable_image"
    ] * 3


@pytest.mark.slow
def test_a_bucket_that_goes_away_ends_the_job_with_status_4_and_the_state_kept(
    client, settings, store, tmp_path
):
    client.create_bucket(Bucket="doomed")
    keys = [f"{number:04d}.png" for number in range(600)]
    for key in keys:
        client.put_object(Bucket="doomed", Key=key, Body=photo(1))
    log = (tmp_path / "log").open("wb")
    with log:
        command = command_line("s3://doomed", "out.jsonl", store=store)
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(**settings), stdout=log, stderr=log
        )
    journal = tmp_path / "out.jsonl.job" / "journal.bin"
    wait_until_written(process, journal, 2000)
    # From its end on, so that the job cannot have read it already.
    client.delete_objects(Bucket="doomed", Delete={"Objects": [{"Key": key} for key in keys[::-1]]})
    client.delete_bucket(Bucket="doomed")
    assert process.wait(PATIENCE_S) == 4, (tmp_path / "log").read_text()
    assert "s3://doomed cannot be reached" in (tmp_path / "log").read_text()
    assert {"journal.bin", "job.json"} <= state_files(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_bucket_that_is_not_there_is_refused(settings, store, tmp_path):
    done = run_process(
        "s3://nowhere/in", "out.csv", store=store, cwd=tmp_path, check=False, **settings
    )
    assert done.returncode == 1
    assert "s3://nowhere/in does not exist" in done.stderr
    assert Path(tmp_path / "out.csv.job").exists() is False
