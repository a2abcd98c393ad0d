"""A job from end to end: every row accounted for, in every format, with the statuses that the
documents promise.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from PIL import Image

from models.errors import ConfigError, DataError, PackageTampered, StorageLost, UnknownModel
from service.engine.classifier import Classifier
from service.scoring.input.items import Unit, units_of
from service.scoring.input.places import raising_storage_lost
from service.scoring.job import Job
from service.scoring.output.tally import Tally
from service.scoring.plan import FailureLimit, parse_failure_limit, parse_shard
from tests.service.scoring.jobs import (
    LABELS,
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

EVERYTHING = "top_k,probabilities,embedding,abstained,model,sha256"


def test_every_image_gets_the_answer_that_it_gets_alone_in_the_order_of_the_input(
    photos, tmp_path, store
):
    """Sums of some dozen float32: a batch may add them in another order, by up to 1e-6."""
    done = score(photos, tmp_path / "out.jsonl", "--columns", EVERYTHING, "--top-k", 3, store=store)
    assert done.exit_code == 0, done.output
    rows = lines(tmp_path / "out.jsonl")
    assert [row["path"] for row in rows] == sorted(str(path) for path in photos.rglob("*.png"))
    assert [row["row"] for row in rows] == list(range(200))
    classifier = Classifier.open("tiny", store=store, threads=1)
    for row in rows[::20]:
        encoded = Path(row["path"]).read_bytes()
        (alone,) = classifier.classify([encoded], top_k=3)
        assert row["prediction"] == row["top_k"][0]["label"] == alone.predictions[0].label
        assert [entry["probability"] for entry in row["top_k"]] == pytest.approx(
            [one.probability for one in alone.predictions], abs=1e-6
        )
        assert [entry["label"] for entry in row["top_k"]] == [
            LABELS[entry["index"]] for entry in row["top_k"]
        ]
        found = classifier.model.run(
            classifier.decode(encoded)[None], ("probabilities", "embedding")
        )
        np.testing.assert_allclose(row["probabilities"], found["probabilities"][0], atol=1e-6)
        np.testing.assert_allclose(row["embedding"], found["embedding"][0], atol=1e-6)
        assert (
            row["sha256"]
            == subprocess.run(
                ["sha256sum", row["path"]], capture_output=True, text=True, check=True
            ).stdout.split()[0]
        )
        assert (row["abstained"], row["model"]) == (False, "tiny:1")
    assert state_files(tmp_path / "out.jsonl") == set()
    assert not (tmp_path / "out.failed.jsonl").exists()
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["classes"] == {
        label: n
        for label, n in summary["classes"].items()
        if n == sum(row["prediction"] == label for row in rows)
    }
    assert sum(summary["classes"].values()) == summary["scored"] == 200
    assert set(summary["drift"]) == {
        "predicted",
        "confidence",
        "brightness",
        "sharpness",
        "embedding_distance",
    }


def test_parquet_csv_jsonl_and_folder_hold_the_same(tmp_path, store):
    (tmp_path / "list.jsonl").write_text(
        "".join(
            json.dumps(
                {"path": f"{n}.png", "id": n, "w": n / 2 if n else 1, "who": "é" if n else None}
            )
            + "\n"
            for n in range(70)
        )
    )
    for number in range(70):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    outs = [tmp_path / name for name in ("o.parquet", "o.csv", "o.jsonl", "folder")]
    for out in outs:
        assert (
            score(tmp_path / "list.jsonl", out, "--columns", EVERYTHING, store=store).exit_code == 0
        )
    rows = lines(outs[2])
    assert list(rows[1]) == [
        "row",
        "path",
        "id",
        "w",
        "who",
        "prediction",
        "probability",
        *EVERYTHING.split(","),
    ]
    assert (rows[0]["id"], rows[0]["w"], rows[0]["who"], rows[1]["who"]) == (0, 1.0, None, "é")
    table = pyarrow.parquet.read_table(outs[0])
    assert table.schema.field("w").type == "double"
    assert table.to_pylist() == pyarrow.dataset.dataset(outs[3]).to_table().to_pylist()
    as_float32 = [{**row, "probability": float(np.float32(row["probability"]))} for row in rows]
    for one, other in zip(table.to_pylist(), as_float32, strict=True):
        assert np.array_equal(np.float32(one["embedding"]), np.float32(other["embedding"]))
        assert {
            name: one[name]
            for name in (
                "row",
                "path",
                "id",
                "w",
                "who",
                "prediction",
                "probability",
                "abstained",
                "model",
                "sha256",
            )
        } == {
            name: other[name]
            for name in (
                "row",
                "path",
                "id",
                "w",
                "who",
                "prediction",
                "probability",
                "abstained",
                "model",
                "sha256",
            )
        }
    with outs[1].open(newline="", encoding="utf-8") as stream:
        texts = list(csv.DictReader(stream))
    assert [np.float32(text["probability"]) for text in texts] == [
        np.float32(row["probability"]) for row in rows
    ]
    assert json.loads(texts[5]["top_k"]) == rows[5]["top_k"]


def test_a_partitioned_folder_has_a_folder_for_each_value(photos, tmp_path, store):
    assert (
        score(photos, tmp_path / "out", "--partition-by", "prediction", store=store).exit_code == 0
    )
    found = pyarrow.dataset.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert sorted(found["row"].to_pylist()) == list(range(200))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"prediction={label}" for label in set(found["prediction"].to_pylist())
    }


@pytest.fixture
def dirt(tmp_path) -> Path:
    """Seventy photos, and one of each that photos are not."""
    folder = tmp_path / "dirt"
    folder.mkdir()
    for number in range(70):
        (folder / f"{number:03d}.png").write_bytes(photo(number))
    (folder / "cut.png").write_bytes(photo(1)[:70])
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "text.jpg").write_text("no image at all")
    (folder / "vanished.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "secret.png").write_bytes(photo(2))
    (folder / "secret.png").chmod(0)
    (folder / "large.png").write_bytes(photo(2) + bytes(200_000))
    os.mkfifo(folder / "pipe.jpg")
    # 200 megapixels in a file of some kilobytes.
    Image.new("1", (14_142, 14_142)).save(folder / "bomb.png")
    return folder


DIRT = {
    "bomb.png": ("too_many_pixels", "PNG of 14142x14142 pixels takes "),
    "cut.png": ("undecodable_image", "PNG"),
    "empty.jpg": ("empty_body", "received 0 bytes, expected an image file"),
    "folder.jpg": ("is_a_directory", "folder.jpg is a directory"),
    "large.png": ("file_too_large", "expected at most 100000; --max-image-bytes raises that"),
    "pipe.jpg": ("empty_body", "received 0 bytes"),
    "secret.png": ("permission_denied", "secret.png may not be read: Permission denied"),
    "text.jpg": ("undecodable_image", "which is no image; expected JPEG, PNG, WEBP"),
    "vanished.jpg": ("not_found", "vanished.jpg does not exist (any more)"),
}
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Root without the right to read what is closed to it."""


def test_what_is_no_photo_gets_its_row_in_the_dead_letters_and_the_job_goes_on(
    dirt, tmp_path, store
):
    out = tmp_path / "scores.csv"
    command = command_line(dirt, out, "--max-image-bytes", 100_000, store=store)
    if os.getuid() == 0:
        command = [*UNPRIVILEGED, *command]
    done = subprocess.run(
        command,
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "70 of 79 images scored by tiny:1" in done.stdout
    assert (
        "failed     9: empty_body 2, file_too_large 1, is_a_directory 1, not_found 1" in done.stdout
    )
    found = failures(out)
    assert set(found) == {str(dirt / name) for name in DIRT}
    for name, (code, reason) in DIRT.items():
        assert found[str(dirt / name)][0] == code, name
        assert reason in found[str(dirt / name)][1]
    assert len(out.read_text().splitlines()) == 71
    rows = [row["row"] for row in lines(out.with_name("scores.failed.jsonl"))] + [
        int(line.split(",")[0]) for line in out.read_text().splitlines()[1:]
    ]
    assert sorted(rows) == list(range(79))


def test_the_dead_letters_are_an_input_of_their_own(tmp_path, store):
    (tmp_path / "list.csv").write_text(f"path,id\n{tmp_path}/1.png,7\n")
    score(tmp_path / "list.csv", tmp_path / "out.csv", store=store)
    (tmp_path / "1.png").write_bytes(photo(1))
    done = score(
        tmp_path / "out.failed.jsonl", tmp_path / "again.jsonl", "--carry", "id", store=store
    )
    assert done.exit_code == 0
    assert [(row["path"], row["id"]) for row in lines(tmp_path / "again.jsonl")] == [
        (f"{tmp_path}/1.png", "7")
    ]


def test_more_failures_than_allowed_end_the_job_with_status_3_and_a_higher_limit_goes_on(
    photos, tmp_path, store
):
    for name in ("x.png", "y.png"):
        (photos / name).write_bytes(b"")
    out = tmp_path / "out.csv"
    for limit in ("1", "0.5%"):
        done = score(photos, out, "--max-failures", limit, "--overwrite", store=store)
        assert done.exit_code == 3
        assert "2 of 202 images failed (2 empty_body), more than --max-failures" in done.output
        assert not out.exists()
        assert len(failures(out)) == 2
        assert "journal.bin" in state_files(out)
    done = score(photos, out, "--max-failures", "1%", "--resume", store=store)
    assert done.exit_code == 0
    assert "200 of 202 images (202 of them before) scored" in done.output


def test_a_count_ends_the_job_at_once_and_a_share_only_once_it_means_something():
    tally = Tally(scored=50, codes={"not_found": 2})
    assert FailureLimit(count=1).exceeded(tally, final=False)
    assert not FailureLimit(count=2).exceeded(tally, final=True)
    assert not FailureLimit(share=0.01).exceeded(tally, final=False)
    assert FailureLimit(share=0.01).exceeded(tally, final=True)
    assert FailureLimit(share=0.01).exceeded(Tally(scored=980, codes={"x": 20}), final=False)
    assert [parse_failure_limit(text) for text in ("7", "0.25", "1.5%", None)] == [
        FailureLimit(7),
        FailureLimit(None, 0.25),
        FailureLimit(None, 0.015),
        FailureLimit(),
    ]
    for text in ("-1", "many", "1.5", "200%"):
        with pytest.raises(
            ConfigError, match=r"expected a count such as 100, or a share such as 0.01 or 1%"
        ):
            parse_failure_limit(text)


def test_shards_divide_the_input_without_loss_or_overlap(photos, tmp_path, store):
    rows = []
    for index in range(3):
        out = tmp_path / f"{index}.jsonl"
        assert score(photos, out, "--shard", f"{index}/3", store=store).exit_code == 0
        rows += lines(out)
    score(photos, tmp_path / "all.jsonl", store=store)
    assert sorted(rows, key=lambda row: row["row"]) == lines(tmp_path / "all.jsonl")
    for text in ("3/3", "1", "a/b"):
        with pytest.raises(ConfigError, match=r"expected I/N with I from 0 to N - 1"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["--columns", "top_k,nope"],
            ConfigError,
            (
                r"--columns 'nope' is none of top_k, probabilities, embedding, abstained, model,"
                r" sha256"
            ),
        ),
        (
            ["--out", "x.xlsx"],
            ConfigError,
            r"--out x.xlsx: .xlsx is none of .parquet, .csv, .jsonl",
        ),
        (
            ["--partition-by", "prediction"],
            ConfigError,
            r"--partition-by makes a folder, and --out .* is a file",
        ),
        (["--model", "nobody"], UnknownModel, r"no model 'nobody' in the store"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    photos, tmp_path, store, options, error, message
):
    with pytest.raises(error, match=message):
        score(photos, tmp_path / "out.csv", *options, store=store)
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_an_input_without_images_is_said_to_have_none(tmp_path, store):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"in holds no images; looked for .jpg, .jpeg"):
        score(tmp_path / "in", tmp_path / "out.csv", store=store)


def test_an_output_is_replaced_only_on_request_and_only_at_the_end(photos, tmp_path, store):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(
        ConfigError,
        match=r"out.csv exists already and is not of this job; replace it with --overwrite",
    ):
        score(photos, out, store=store)
    (photos / "x.png").write_bytes(b"")
    assert score(photos, out, "--overwrite", "--max-failures", "0", store=store).exit_code == 3
    assert out.read_text() == "mine"
    assert score(photos, out, "--overwrite", store=store).exit_code == 0
    assert len(out.read_text().splitlines()) == 201


def test_a_model_that_fails_its_check_ends_the_job_with_the_state_kept(photos, tmp_path, store):
    import shutil

    shutil.copytree(store, tmp_path / "store")
    out = tmp_path / "out.csv"
    (photos / "x.png").write_bytes(b"")
    assert score(photos, out, "--max-failures", "0", store=tmp_path / "store").exit_code == 3
    before = (tmp_path / "out.csv.job" / "journal.bin").read_bytes()
    model = tmp_path / "store" / "tiny" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(PackageTampered, match=r"model.onnx was changed after export"):
        score(photos, out, "--resume", store=tmp_path / "store")
    assert (tmp_path / "out.csv.job" / "journal.bin").read_bytes() == before


def test_csv_of_a_folder_needs_none_of_the_extras_and_parquet_says_which_it_needs(
    photos, tmp_path, store
):
    """With the libraries of the extras hidden, as where they are not installed."""
    hide = (
        "import sys; sys.modules.update(dict.fromkeys(('pyarrow', 'fsspec', 's3fs', 'gcsfs',"
        " 'ray'))); import loupe; loupe.main()"
    )

    def ask(source: object, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", hide, *command_line(source, *options, store=store)[3:]]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    assert ask(photos, "out.csv").returncode == 0
    install = "which is not installed here: pip install 'loupe-vision["
    refused = {
        (
            photos,
            "out.parquet",
        ): f"writing Parquet (.csv and .jsonl do without) needs pyarrow, {install}score]'",
        ("s3://bucket/x", "x.csv"): f"reading s3:// needs fsspec, {install}score]'",
        (photos, "y.csv", "--engine", "ray"): f"--engine ray needs ray, {install}ray]'",
    }
    for arguments, message in refused.items():
        done = ask(*arguments)
        assert (done.returncode, done.stderr) == (1, f"error: {message}\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("odd.csv", "photo,species\na.png,x\n"),
        ("empty.csv", ""),
        ("deep.jsonl", "[" * 100_000 + "\n"),
    ],
)
def test_a_table_that_cannot_be_scored_costs_one_line_and_no_traceback(
    tmp_path, store, name, content
):
    (tmp_path / name).write_text(content)
    done = run_process(name, "o.csv", store=store, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_what_the_counting_thread_meets_is_not_told_unless_it_is_a_fault_of_ours(
    monkeypatch, photos, tmp_path, store
):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))
    for error in (ConfigError("x"), OSError("x"), ValueError("x"), KeyError("x")):
        monkeypatch.setattr(
            Job,
            "_units",
            lambda self, not_images=None, error=error: _raising(self, not_images, error),
        )
        assert score(photos, tmp_path / "o.csv", "--overwrite", store=store).exit_code == 0
    assert told == [KeyError]


def _raising(job: Job, not_images: Counter[str] | None, error: Exception) -> Iterator[Unit]:
    """The units of *job*, or *error* in the thread that only counts."""
    if not_images is None:
        raise error
    return units_of(job.source.items(not_images))


def test_files_that_are_no_images_are_counted_and_told(tmp_path, store):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.png").write_bytes(photo(1))
    for name in ("a.txt", "b.txt", "c.mp4"):
        (folder / name).touch()
    done = score(folder, tmp_path / "o.csv", store=store)
    assert "skipped    3 files are not images: 2 .txt, 1 .mp4\n" in done.output
    assert json.loads((tmp_path / "o.summary.json").read_text())["not_images"] == {
        ".txt": 2,
        ".mp4": 1,
    }
    (folder / "1.png").unlink()
    with pytest.raises(
        DataError,
        match=r"holds no images \(3 files are not images: 2 .txt, 1 .mp4\); looked for .jpg",
    ):
        score(folder, tmp_path / "p.csv", store=store)


def test_an_output_may_be_called_like_a_url_of_nothing(photos, tmp_path, store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert score(photos, "torchvision:NoSuch:/nowhere", store=store).exit_code == 0
    assert pyarrow.dataset.dataset(tmp_path / "torchvision:NoSuch:" / "nowhere").count_rows() == 200


@pytest.mark.parametrize("out", ["", "/", ".", "x/.."])
def test_an_output_without_a_name_is_refused(tmp_path, store, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--out .* has no name for a file or folder"):
        score(tmp_path, out, store=store)


def test_a_disk_that_refuses_is_named_with_what_to_do(tmp_path):
    with (
        pytest.raises(
            StorageLost,
            match=(
                r"^a/b.csv: the file system is read-only; choose a place that can be written\. The"
                r" job's state"
            ),
        ),
        raising_storage_lost("a/b.csv"),
    ):
        raise OSError(errno.EROFS, "Read-only file system", "/elsewhere")


def test_an_unknown_scheme_is_named(tmp_path, store):
    with pytest.raises(
        ConfigError, match=r"nope:// cannot be read: .*Known here: s3://, gs://, file://"
    ):
        score("nope://bucket/x", tmp_path / "out.csv", store=store)


def test_a_job_that_another_process_works_on_is_left_alone(photos, tmp_path, store):
    import fcntl

    (tmp_path / "out.csv.job").mkdir()
    with (tmp_path / "out.csv.job" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = score(photos, tmp_path / "out.csv", "--resume", store=store)
    assert done.exit_code == 1
    assert "another process works on the job in" in done.output


def test_paths_that_are_no_utf8_are_scored_too(tmp_path, store):
    folder = tmp_path / "in"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.png")).write_bytes(photo(1))
    for out in ("o.csv", "o.jsonl", "o.parquet"):
        assert score(folder, tmp_path / out, store=store).exit_code == 0
    assert b"/\\udce4.png" in (tmp_path / "o.csv").read_bytes()
    (row,) = lines(tmp_path / "o.jsonl")
    assert os.fsencode(row["path"]) == os.fsencode(folder) + b"/\xe4.png"
