"""A run folder: what is written comes back, and what is missing, damaged or in the way is named."""

import json
import re

import pytest
import torch

from models.errors import ConfigError, TrainingError
from models.package.manifest import PreprocessSpec
from tests.training.photos import in_memory
from training.config import TrainConfig
from training.data.index import make_index
from training.runs.provenance import provenance
from training.runs.run import (
    CONFIG_FILE,
    METRICS_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    Environment,
    EpochResult,
    RunRecord,
    create_run,
    open_run,
)

CONFIG = TrainConfig(network="resnet18", seed=5)


@pytest.fixture
def record() -> RunRecord:
    dataset = in_memory(train=2, held_out=1)
    environment = Environment(provenance=provenance(), device="cpu", processes=1, threads=2)
    return RunRecord(
        labels=dataset.labels,
        data=make_index(dataset, PreprocessSpec(), most=0.0).fingerprint(),
        unreadable={"a.png": "cut short"},
        weights="file",
        weights_identifier="w.pth",
        weights_sha256="0" * 64,
        teacher_sha256=None,
        environment=environment,
    )


@pytest.fixture
def run(tmp_path, record):
    return create_run(tmp_path / "runs/a", CONFIG, record)


def test_what_is_written_comes_back(run, record):
    result = EpochResult(
        epoch=1,
        phase="train",
        train_loss=0.5,
        val_accuracy=0.75,
        learning_rate=1e-3,
        images_per_s=10.0,
        seconds=2.0,
    )
    state = {"linear.weight": torch.arange(6.0).reshape(2, 3).T, "count": torch.tensor(3)}
    run.log(result)
    run.log(result)
    run.save_weights(state)

    found = open_run(run.path)
    assert (found.config, found.record) == (CONFIG, record)
    assert [line["val_accuracy"] for line in found.metrics()] == [0.75, 0.75]
    loaded = found.load_weights()
    assert {key: value.tolist() for key, value in loaded.items()} == {
        key: value.tolist() for key, value in state.items()
    }
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        [CONFIG_FILE, RECORD_FILE, METRICS_FILE, WEIGHTS_FILE]
    )


def test_a_run_names_where_its_weights_came_from(run):
    lineage = run.record.lineage(run)
    assert (lineage.weights, lineage.identifier, lineage.run, lineage.seed) == (
        "file",
        "w.pth",
        "a",
        5,
    )


def test_a_run_that_has_not_begun_has_no_metrics(run):
    assert run.metrics() == []


def test_an_unfinished_run_has_no_weights_to_load(run):
    expected = (
        f"run {run.path} has no weights.safetensors: it was not finished; continue it with `loupe"
        f" train --resume --out {run.path}`"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(expected)}$"):
        run.load_weights()


def test_damaged_weights_are_named(run):
    (run.path / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(
        TrainingError,
        match=f"^{re.escape(str(run.path / WEIGHTS_FILE))} is damaged: .*; train again$",
    ):
        run.load_weights()


def test_nothing_is_overwritten(run, record):
    expected = (
        f"run folder {run.path} is not empty; choose another --out, continue it with --resume, or"
        " remove it"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(expected)}$"):
        create_run(run.path, CONFIG, record)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, record):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        TrainingError,
        match=(
            f"^cannot write run folder {re.escape(str(tmp_path / 'file/run'))}: a part of this path"
            " is a file"
        ),
    ):
        create_run(tmp_path / "file/run", CONFIG, record)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(
        TrainingError,
        match=(
            f"^{re.escape(str(tmp_path))} is not a run folder: .*config.json: there is no such file"
            " or folder; check the path$"
        ),
    ):
        open_run(tmp_path)


def test_a_record_that_was_edited_wrongly_is_refused(run):
    raw = json.loads((run.path / RECORD_FILE).read_text())
    (run.path / RECORD_FILE).write_text(json.dumps(raw | {"labels": 3}))
    with pytest.raises(TrainingError, match=r"run\.json: Input should be a valid array"):
        open_run(run.path)
    (run.path / CONFIG_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json: not a run's configuration: .*network"):
        open_run(run.path)
