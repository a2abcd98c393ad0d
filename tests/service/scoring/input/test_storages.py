"""One object that cannot be read is a dead letter, a storage that is gone ends the job: with and
without the right to list.
"""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import botocore.session
import fsspec
import numpy as np
import pyarrow.parquet
import pytest

from models.errors import ConfigError, DataError, StorageLost
from service.scoring.compute.quarantine import MOST_HELD, released
from service.scoring.compute.unit import Record
from service.scoring.input.inputs import open_input
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import replaced_folder
from service.scoring.input.reader import Reader
from tests.service.scoring.jobs import (
    PROXIES,
    failures,
    lines,
    photo,
    run_process,
    score,
    state_files,
)
from tests.service.scoring.test_buckets import moto

BUCKET = "guarded"
ALLOWED = {
    "Effect": "Allow",
    "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
    "Resource": f"arn:aws:s3:::{BUCKET}/*",
}
DENIED = {"Effect": "Deny", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/secret.png"}


class Guarded:
    """A bucket on an S3 server that checks rights, and a user who may read and write objects but
    not list them.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.s3, self._iam = (self._client(name, "root", "root") for name in ("s3", "iam"))
        self.s3.create_bucket(Bucket=BUCKET)
        for number in range(20):
            self.s3.put_object(Bucket=BUCKET, Key=f"{number}.png", Body=photo(number))
        self.s3.put_object(Bucket=BUCKET, Key="secret.png", Body=photo(1))
        self.key = self._user("worker", ALLOWED, DENIED)
        admin = self._user("admin", {"Effect": "Allow", "Action": "*", "Resource": "*"})
        request = urllib.request.Request(
            f"{endpoint}/moto-api/reset-auth",
            data=b"0",
            method="POST",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
        self.s3, self._iam = (self._client(name, *admin) for name in ("s3", "iam"))

    @property
    def settings(self) -> dict[str, str]:
        """What the user sets."""
        fixed = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return fixed | dict(
            zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self.key, strict=True)
        )

    def allow(self, *statements: dict[str, object]) -> None:
        """Give the user just these rights."""
        self._allow("worker", *statements)

    def _user(self, name: str, *statements: dict[str, object]) -> tuple[str, str]:
        self._iam.create_user(UserName=name)
        self._allow(name, *statements)
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def _allow(self, name: str, *statements: dict[str, object]) -> None:
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self._iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)

    def _client(self, service: str, key: str, secret: str):
        session = botocore.session.Session()
        session.set_credentials(key, secret)
        return session.create_client(service, endpoint_url=self.endpoint, region_name="us-east-1")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[Guarded]:
    with pytest.MonkeyPatch.context() as patch:
        for name in PROXIES:
            patch.delenv(name, raising=False)
        with moto(
            tmp_path_factory.mktemp("moto"), INITIAL_NO_AUTH_ACTION_COUNT="1000000"
        ) as endpoint:
            yield Guarded(endpoint)


def table_of(folder: Path, *paths: str) -> Path:
    (folder / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
    return folder / "list.csv"


def test_a_key_that_may_not_be_read_is_a_dead_letter_when_others_can_be_and_nothing_may_be_listed(
    guarded, store, tmp_path
):
    """The bad ones come first: nothing was read yet that they could be held against."""
    bad = ["secret.png", "missing.png", "x/../0.png"]
    elsewhere = ["s3://nobody-has-this/1.png", "nope://x/1.png", "s3://"]
    good = [f"s3://{BUCKET}/{number % 20}.png" for number in range(60)]
    table = table_of(tmp_path, *(f"s3://{BUCKET}/{name}" for name in bad), *elsewhere, *good)
    done = run_process(
        table, f"s3://{BUCKET}/out/scores.jsonl", store=store, cwd=tmp_path, **guarded.settings
    )
    assert "60 of 66 images scored" in done.stdout
    letters = (
        guarded.s3.get_object(Bucket=BUCKET, Key="out/scores.failed.jsonl")["Body"]
        .read()
        .decode()
        .splitlines()
    )
    assert [json.loads(line)["path"] for line in letters] == [
        *(f"s3://{BUCKET}/{name}" for name in bad),
        *elsewhere,
    ]
    assert json.loads(letters[0])["code"] == "permission_denied"
    assert (
        len(
            guarded.s3.get_object(Bucket=BUCKET, Key="out/scores.jsonl")["Body"].read().splitlines()
        )
        == 60
    )


@pytest.mark.slow
def test_rights_that_are_lost_in_mid_job_end_it_and_it_goes_on_when_they_are_back(
    guarded, store, tmp_path
):
    """Two of three units are scored, then the user may read nothing any more."""
    good = [f"s3://{BUCKET}/{number % 20}.png" for number in range(192)]
    table = table_of(tmp_path, *good)
    run_process(table, "whole.jsonl", store=store, cwd=tmp_path, **guarded.settings)
    reader = Reader(str(table))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in guarded.settings.items():
            patch.setenv(name, value)
        items = list(open_input(str(table)).items())
        assert isinstance(reader.read(items[0]), bytes)
        denied = Item("", url=f"s3://{BUCKET}/secret.png")
        assert reader.read(denied).storage_error == ""
        guarded.allow(DENIED)
        try:
            with pytest.raises(
                StorageLost,
                match=(
                    rf"s3://{BUCKET} cannot be reached: .*What could be read before cannot be"
                    r" read now"
                ),
            ):
                reader.read(items[0])
            done = run_process(
                table, "out.jsonl", store=store, cwd=tmp_path, check=False, **guarded.settings
            )
        finally:
            guarded.allow(ALLOWED, DENIED)
    assert done.returncode == 4
    assert (
        f"none of 192 images in a row could be read. s3://{BUCKET} cannot be reached:"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.failed.jsonl").exists()
    run_process(table, "out.jsonl", "--resume", store=store, cwd=tmp_path, **guarded.settings)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_a_folder_in_a_bucket_is_replaced_file_by_file_after_the_new_one_is_complete(
    guarded, store, tmp_path
):
    guarded.allow({"Effect": "Allow", "Action": "*", "Resource": "*"})
    try:
        out = f"s3://{BUCKET}/scores"
        for count, options in ((40, ()), (3, ("--overwrite",))):
            table = table_of(
                tmp_path, *(f"s3://{BUCKET}/{number}.png" for number in range(count % 20 or 20))
            )
            run_process(
                table,
                out,
                "--partition-by",
                "prediction",
                *options,
                store=store,
                cwd=tmp_path,
                **guarded.settings,
            )
        keys = [entry["Key"] for entry in guarded.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
        assert [key for key in keys if ".tmp" in key] == []
        tables = [
            guarded.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
            if key.startswith("scores/")
        ]
        assert sum(pyarrow.parquet.read_table(io.BytesIO(table)).num_rows for table in tables) == 3
        refused = run_process(
            table,
            f"s3://{BUCKET}",
            "--overwrite",
            store=store,
            cwd=tmp_path,
            check=False,
            **guarded.settings,
        )
        assert refused.returncode == 1
        assert (
            f"--out s3://{BUCKET} is a whole bucket; name a folder in it, such as"
            f" s3://{BUCKET}/scores" in refused.stderr
        )
    finally:
        guarded.allow(ALLOWED, DENIED)


@pytest.mark.parametrize("place", ["memory://jobs/scores", "local"])
def test_the_old_folder_stands_until_the_new_one_does(tmp_path, place):
    place = str(tmp_path / "scores") if place == "local" else place
    system, root = fsspec.core.url_to_fs(place)

    def write(folder: str, name: str, content: bytes) -> None:
        system.makedirs(f"{folder}/{name}", exist_ok=True)
        system.pipe_file(f"{folder}/{name}/part-0.parquet", content)

    write(root, "old=1", b"old")

    def names() -> list[str]:
        return sorted(path[path.index("scores") :] for path in system.find(root.rpartition("/")[0]))

    with suppress(KeyboardInterrupt), replaced_folder(place) as (folder, _):
        write(folder, "new=1", b"half")
        raise KeyboardInterrupt
    assert system.cat_file(f"{root}/old=1/part-0.parquet") == b"old"
    with replaced_folder(place) as (folder, _):
        write(folder, "new=2", b"new")
        assert system.cat_file(f"{root}/old=1/part-0.parquet") == b"old"
        assert not system.exists(f"{root}/new=2/part-0.parquet")
    assert names() == ["scores/new=2/part-0.parquet"]
    system.rm(root, recursive=True)


def test_an_output_never_takes_the_place_of_the_input_or_of_what_no_job_wrote(
    photos, tmp_path, store
):
    before = sorted(path.read_bytes() for path in photos.rglob("*.png"))
    with pytest.raises(
        ConfigError, match=r"the job would write .*photos over its own input; choose another --out"
    ):
        score(photos, photos, "--overwrite", store=store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".thesis.tex").touch()
    with pytest.raises(
        ConfigError,
        match=(
            r"holds .*thesis.tex, which no job wrote, and --overwrite would delete it; choose"
            r" another folder"
        ),
    ):
        score(photos, tmp_path / "mine", "--overwrite", store=store)
    table = tmp_path / "x.failed.jsonl"
    table.write_text(json.dumps({"path": str(next(photos.rglob("*.png")))}) + "\n")
    with pytest.raises(ConfigError, match=r"would write .*x.failed.jsonl over its own input"):
        score(table, tmp_path / "x.csv", store=store)
    assert sorted(path.read_bytes() for path in photos.rglob("*.png")) == before


def record(unit: int, *, rows: int = 0, storage_error: str = "", was_read: bool = False) -> Record:
    failed = [
        (unit, Item("bad"), Fault("unreadable", "", storage_error=storage_error, was_read=was_read))
    ]
    return Record(
        unit,
        unit,
        "",
        [(unit, Item("good"))] * rows,
        failed,
        {"top_index": np.zeros((rows, 1), np.int32)},
    )


def test_records_in_doubt_wait_for_an_image_that_could_be_read():
    doubtful = [record(unit, storage_error="403") for unit in range(MOST_HELD)]
    good, neutral = record(99, rows=1), record(98)
    assert list(released([*doubtful[:3], neutral, good, neutral], any_before=False)) == [
        *doubtful[:3],
        neutral,
        good,
        neutral,
    ]
    assert next(released([doubtful[0], record(1, was_read=True)], any_before=False)) is doubtful[0]
    assert list(released([good, doubtful[0]], any_before=False)) == [good, doubtful[0]]
    assert list(released(doubtful[:2], any_before=True)) == doubtful[:2]
    with pytest.raises(
        StorageLost, match=r"none of 2 images in a row could be read. 403. The job's state is kept"
    ):
        list(released(doubtful[:2], any_before=False))
    given = []
    with pytest.raises(StorageLost, match=rf"none of {MOST_HELD} images in a row"):
        given.extend(released([good, *doubtful], any_before=True))
    assert given == [good]


class Photos(BaseHTTPRequestHandler):
    """`/N.png` is a photo; `/status/404.png` answers 404; `/endless.png` never ends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2].partition(".")[0]
        if self.server.broken.is_set():
            self._answer(503, b"")
        elif self.path.startswith("/status/"):
            self._answer(int(name), b"no")
        elif self.path.startswith("/list.csv"):
            self._answer(
                200,
                b"path\n1.png\nhttp://%s/2.png\nstatus/404.png\n" % self.headers["Host"].encode(),
            )
        elif self.path.startswith("/endless"):
            self._answer(200, b"", length="1000000000000")
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        else:
            self._answer(200, photo(int(name)))
            self.server.answered += 1
            if self.server.answered == self.server.breaks_after:
                self.server.broken.set()

    def do_HEAD(self) -> None:
        self._answer(405, b"")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes, *, length: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def web(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Photos) as server:
        server.broken, server.answered, server.breaks_after = threading.Event(), 0, -1
        server.daemon_threads = True
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_urls_that_cannot_be_read_are_dead_letters_when_others_can_be(web, store, tmp_path):
    bad = {
        f"{web.url}/status/404.png": "not_found",
        f"{web.url}/status/410.png": "not_found",
        f"{web.url}/status/403.png": "permission_denied",
        f"{web.url}/status/429.png": "unreadable",
        f"{web.url}/status/500.png": "unreadable",
        f"{web.url}/endless.png": "file_too_large",
        "http://127.0.0.1:1/1.png": "unreadable",
        "https://": "unreadable",
        "http://[bad/1.png": "unreadable",
    }
    table = table_of(
        tmp_path, *bad, *(f"{web.url}/{number}.png?size=full#top" for number in range(5))
    )
    done = score(table, tmp_path / "out.jsonl", "--max-image-bytes", 100_000, store=store)
    assert done.exit_code == 0, done.output
    assert {path: code for path, (code, _) in failures(tmp_path / "out.jsonl").items()} == bad
    assert len(lines(tmp_path / "out.jsonl")) == 5


def test_a_file_that_is_too_large_is_not_read_again_to_see_whether_its_server_is_there(web):
    reader = Reader("", max_bytes=100_000)
    assert reader.read(Item("", url=f"{web.url}/endless.png")).code == "file_too_large"
    assert "neither" in reader.read(Item("", url=f"{web.url}/status/500.png")).storage_error


def test_a_server_that_goes_away_ends_the_job_and_it_goes_on_when_it_is_back(web, store, tmp_path):
    table = table_of(tmp_path, *(f"{web.url}/{number}.png" for number in range(300)))
    web.breaks_after = 150
    done = score(table, tmp_path / "out.jsonl", "--lanes", 1, store=store)
    assert done.exit_code == 4, done.output
    assert "http(s) cannot be reached" in done.output
    assert {"journal.bin", "job.json"} <= state_files(tmp_path / "out.jsonl")
    web.breaks_after = -1
    web.broken.clear()
    done = score(table, tmp_path / "out.jsonl", "--lanes", 1, "--resume", store=store)
    assert "300 of 300 images" in done.output
    assert not (tmp_path / "out.failed.jsonl").exists()


def test_a_table_on_a_server_is_read_and_its_paths_count_from_it(web, store, tmp_path):
    done = score(f"{web.url}/list.csv?signature=a/b", tmp_path / "out.jsonl", store=store)
    assert done.exit_code == 0, done.output
    assert [row["path"] for row in lines(tmp_path / "out.jsonl")] == ["1.png", f"{web.url}/2.png"]
    assert failures(tmp_path / "out.jsonl")["status/404.png"][0] == "not_found"
    assert score(f"{web.url}/3.png", tmp_path / "one.jsonl", store=store).exit_code == 0
    for name in ("photos/", "a.zip", "{a,b}.tar"):
        with pytest.raises(
            DataError,
            match=(
                r"an HTTP server lists no folders, and archives are read in parts; expected an"
                r" image, or a table"
            ),
        ):
            open_input(f"{web.url}/{name}")


def test_nothing_scored_is_no_success(store, tmp_path):
    table = table_of(tmp_path, *(f"gone-{number}.png" for number in range(6)))
    for options in ((), ("--resume",)):
        done = score(table, tmp_path / "out.csv", *options, store=store)
        assert done.exit_code == 1
        assert (
            f"error: none of 6 images could be scored; {tmp_path}/out.failed.jsonl says why"
            in done.output
        )


def test_a_shard_without_a_unit_is_done(photos, store, tmp_path):
    done = score(photos, tmp_path / "out.jsonl", "--shard", "7/8", store=store)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.jsonl").read_bytes() == b""
