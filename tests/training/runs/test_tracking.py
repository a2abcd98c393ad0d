"""TensorBoard and MLflow are told what `metrics.jsonl` says, once for each epoch, also when a run
is resumed.
"""

import dataclasses
import json
import sys

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.errors import ConfigError, TrainingError
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training.commands import train as command
from training.fit import loop
from training.fit.loop import train
from training.runs.tracking import MLFLOW_FILE, TENSORBOARD_FOLDER, Tracking, figures

CONFIG = dataclasses.replace(TINY, network="lenet5", batch_size=12, probe_epochs=1, epochs=3)


@pytest.fixture
def photos():
    return in_memory(train=8, held_out=2)


def interrupted(monkeypatch, epochs, run):
    """*run* ended by Ctrl-C once so many *epochs* are told, of which the last has no checkpoint."""
    save, count = loop.save_checkpoint, iter(range(1, 100))

    def stop(*arguments):
        if next(count) == epochs:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()


def told_to_tensorboard(run, name):
    events = EventAccumulator(str(run.path / TENSORBOARD_FOLDER)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_each_epoch_once_also_of_a_resumed_run(photos, tmp_path, monkeypatch):
    interrupted(monkeypatch, 3, lambda: train(CONFIG, photos, tmp_path / "run"))
    run = train(CONFIG, photos, tmp_path / "run", resume=True)
    metrics = run.metrics()
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4]
    for name, field in (
        ("loss/train", "train_loss"),
        ("accuracy/val", "val_accuracy"),
        ("learning_rate", "learning_rate"),
    ):
        # Events are float32.
        assert told_to_tensorboard(run, name) == [
            (line["epoch"], pytest.approx(line[field], rel=1e-6)) for line in metrics
        ]


def test_tensorboard_can_be_left_away(photos, tmp_path):
    run = train(
        dataclasses.replace(CONFIG, epochs=1),
        photos,
        tmp_path / "run",
        tracking=Tracking(tensorboard=False),
    )
    assert not (run.path / TENSORBOARD_FOLDER).exists()
    assert len(run.metrics()) == 2


def test_mlflow_has_parameters_and_every_epoch_of_one_run_also_when_resumed(
    photos, tmp_path, monkeypatch
):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    uri = f"file:{tmp_path / 'mlruns'}"
    tracking = Tracking(tensorboard=False, mlflow=uri)
    interrupted(monkeypatch, 2, lambda: train(CONFIG, photos, tmp_path / "run", tracking=tracking))
    client = mlflow.MlflowClient(tracking_uri=uri)
    identifier = json.loads((tmp_path / "run" / MLFLOW_FILE).read_text())["run_id"]
    assert client.get_run(identifier).info.status == "KILLED"

    run = train(CONFIG, photos, tmp_path / "run", resume=True, tracking=tracking)
    found = client.get_run(identifier)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["network"] == "lenet5"
    assert len(found.data.params) == len(dataclasses.fields(CONFIG))
    assert found.data.tags["data"] == "memory"
    assert {metric.step for metric in client.get_metric_history(identifier, "loss/train")} == {
        1,
        2,
        3,
        4,
    }
    last = run.metrics()[-1]
    assert found.data.metrics["accuracy/val"] == pytest.approx(last["val_accuracy"])
    assert {
        "loss/train",
        "loss/val",
        "accuracy/val",
        "learning_rate",
        "images_per_s",
        "seconds",
    } == set(found.data.metrics)


def test_a_run_that_fails_is_marked_in_mlflow(photos, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    uri = f"file:{tmp_path / 'mlruns'}"
    config = dataclasses.replace(
        CONFIG, probe_epochs=0, learning_rate=0.5, weight_decay=1e5, warmup_share=0.0, epochs=20
    )
    with pytest.raises(TrainingError, match="the loss became"):
        train(config, photos, tmp_path / "run", tracking=Tracking(tensorboard=False, mlflow=uri))
    identifier = json.loads((tmp_path / "run" / MLFLOW_FILE).read_text())["run_id"]
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(identifier).info.status == "FAILED"


@pytest.mark.parametrize(
    ("module", "tracking", "expected"),
    [
        (
            "torch.utils.tensorboard",
            Tracking(),
            (
                r"^TensorBoard cannot be imported \(.*\); `make setup` installs it, and"
                r" --no-tensorboard does without$"
            ),
        ),
        (
            "mlflow",
            Tracking(tensorboard=False, mlflow="file:x"),
            r"^--mlflow file:x: MLflow is not installed \(.*\); install the extra `mlflow`",
        ),
    ],
)
def test_what_is_not_installed_is_named_with_what_to_do(
    photos, tmp_path, monkeypatch, module, tracking, expected
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=expected):
        train(CONFIG, photos, tmp_path / "run", tracking=tracking)


def test_an_mlflow_that_cannot_be_reached_is_named(photos, tmp_path):
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    with pytest.raises(TrainingError, match=r"^--mlflow nowhere://x: "):
        train(
            CONFIG,
            photos,
            tmp_path / "run",
            tracking=Tracking(tensorboard=False, mlflow="nowhere://x"),
        )


def test_the_command_has_an_option_for_each(tmp_path):
    asked = [
        "--recipe",
        "lenet5",
        "--smoke",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "--no-tensorboard",
    ]
    done = CliRunner().invoke(
        command, [*asked, "--mlflow", f"file:{tmp_path / 'mlruns'}"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert not (tmp_path / "run" / TENSORBOARD_FOLDER).exists()
    assert (tmp_path / "run" / MLFLOW_FILE).is_file()


def test_what_is_told_is_what_the_metrics_say(photos, tmp_path):
    run = train(dataclasses.replace(CONFIG, epochs=1, probe_epochs=0), photos, tmp_path / "run")
    (line,) = run.metrics()
    told = figures(loop.EpochResult(**line))
    assert set(told.values()) == {
        value
        for key, value in line.items()
        if key not in ("epoch", "phase", "broken", "val_images", "confused", "gradient_norms")
    }
