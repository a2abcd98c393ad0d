"""A run that was interrupted continues bit for bit, and only as the run that it was."""

import dataclasses
import io
import json

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from models.errors import DataError, TrainingError
from tests.training.photos import COLOURS, in_memory, write_photos
from tests.training.small_runs import TINY
from training.commands import train as train_command
from training.data.source import Dataset
from training.data.sources.dataset import relabelled
from training.fit import finetune, loop
from training.fit.checkpoint import CHECKPOINT_FILE, Progress
from training.fit.loop import train
from training.runs.run import METRICS_FILE, WEIGHTS_FILE

CONFIG = dataclasses.replace(
    TINY,
    network="simple_cnn",
    batch_size=8,
    probe_epochs=3,
    epochs=3,
    ema_decay=0.9,
    accumulate=2,
    balanced_sampling=True,
    mixup=0.2,
    cutmix=1.0,
    augment="trivial",
    erasing=0.3,
    layer_decay=0.8,
)


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return in_memory(train=8, held_out=2)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    return train(CONFIG, photos, tmp_path_factory.mktemp("whole") / "run")


def history(run):
    return [
        (line["epoch"], line["phase"], line["train_loss"], line["val_accuracy"])
        for line in run.metrics()
    ]


def stop_after(monkeypatch, saved):
    """Ctrl-C as soon as *saved* checkpoints are written."""
    save, count = loop.save_checkpoint, iter(range(1, 100))

    def save_and_stop(*arguments):
        save(*arguments)
        if next(count) == saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)


@pytest.mark.parametrize("saved", [1, 3, 4, 6])
def test_a_resumed_run_equals_the_uninterrupted_one(whole, photos, tmp_path, monkeypatch, saved):
    """In the probe, at its end, in the middle of training, and after the last epoch: to the last
    bit.
    """
    stop_after(monkeypatch, saved)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, photos, tmp_path / "run")
    monkeypatch.undo()
    torch.rand(17)
    run = train(CONFIG, photos, tmp_path / "run", resume=True)

    assert history(run) == history(whole)
    trained, expected = run.load_weights(), whole.load_weights()
    assert len(expected) >= 10
    assert [key for key in expected if not torch.equal(trained[key], expected[key])] == []
    assert not (run.path / CHECKPOINT_FILE).exists()


def test_other_optimisers_and_precisions_resume_too(photos, tmp_path, monkeypatch):
    config = dataclasses.replace(
        CONFIG,
        probe_epochs=0,
        batch_size=12,
        epochs=2,
        optimiser="sgd",
        learning_rate=0.01,
        precision="fp16",
        channels_last=True,
    )
    expected = train(config, photos, tmp_path / "whole")
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, photos, tmp_path / "run")
    monkeypatch.undo()
    run = train(config, photos, tmp_path / "run", resume=True)
    assert history(run) == history(expected)
    assert all(
        torch.equal(value, run.load_weights()[key])
        for key, value in expected.load_weights().items()
    )


def test_ctrl_c_in_an_epoch_keeps_the_last_whole_one_and_says_how_to_go_on(
    whole, photos, tmp_path, monkeypatch
):
    learn, stream = finetune.Learner.learn, io.StringIO()

    def interrupted(self, loss, *, batch):
        if self.average is not None and self.steps == 3:
            raise KeyboardInterrupt
        learn(self, loss, batch=batch)

    monkeypatch.setattr(finetune.Learner, "learn", interrupted)
    monkeypatch.setattr(loop, "CONSOLE", Console(file=stream, soft_wrap=True))
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, photos, tmp_path / "run")
    monkeypatch.undo()
    assert (
        "interrupted; all complete epochs are saved. To continue: `loupe train --resume --out"
        f" {tmp_path / 'run'}`" in stream.getvalue()
    )
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()
    assert history(train(CONFIG, photos, tmp_path / "run", resume=True)) == history(whole)


def test_metrics_of_an_epoch_without_a_checkpoint_are_not_kept_twice(
    whole, photos, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, photos, tmp_path / "run")
    monkeypatch.undo()
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == 1
    assert history(train(CONFIG, photos, tmp_path / "run", resume=True)) == history(whole)


def test_a_finished_run_is_left_as_it_is(whole, photos):
    before = (whole.path / WEIGHTS_FILE).stat().st_mtime_ns
    assert train(CONFIG, photos, whole.path, resume=True).path == whole.path
    assert (whole.path / WEIGHTS_FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "labels", "count", "expected"),
    [({"network": "lenet5"}, tuple(COLOURS), 8, "network was simple_cnn and is now lenet5")],
)
def test_another_run_is_not_resumed_and_the_difference_is_named(
    whole, changes, labels, count, expected
):
    dataset = dataclasses.replace(in_memory(train=count, held_out=2), labels=labels)
    with pytest.raises(
        TrainingError,
        match=(
            f"cannot continue, because it was started differently: {expected}.*Put that back, or"
            " choose another --out$"
        ),
    ):
        train(dataclasses.replace(CONFIG, **changes), dataset, whole.path, resume=True)


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        (
            ("green", "blue", "red"),
            8,
            (
                "24 of the 36 images of the run .* such as train/blue-0.png: has another class or"
                " other content than it had"
            ),
        ),
        (
            tuple(COLOURS),
            7,
            "3 of the 36 images of the run .* such as train/blue-7.png: is no longer there",
        ),
    ],
)
def test_a_run_whose_images_are_other_ones_is_not_resumed(whole, labels, count, expected):
    dataset = dataclasses.replace(in_memory(train=count, held_out=2), labels=labels)
    with pytest.raises(DataError, match=expected):
        train(CONFIG, dataset, whole.path, resume=True)


def test_a_run_goes_on_with_its_own_images_and_order_of_classes(
    photos, whole, tmp_path, monkeypatch, capsys
):
    """A class in front of all others and one more image: neither is the run's."""
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, photos, tmp_path / "run")
    monkeypatch.undo()
    labels = ("azure", *reversed(photos.labels))
    splits = {
        split: relabelled(examples, photos.labels, labels)
        for split, examples in photos.splits.items()
    }
    splits["train"] = (
        dataclasses.replace(splits["train"][0], name="new.png", label=0),
        *splits["train"],
    )
    run = train(
        CONFIG,
        dataclasses.replace(photos, labels=labels, splits=splits),
        tmp_path / "run",
        resume=True,
    )
    assert history(run) == history(whole)
    assert "added since the run began, and ignored: 1, such as new.png" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_damaged_checkpoint_is_named(photos, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, photos, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(b"damaged")
    with pytest.raises(
        TrainingError, match=r"checkpoint\.safetensors is damaged: .*; remove .* and train again$"
    ):
        train(CONFIG, photos, tmp_path / "run", resume=True)


def test_the_command_takes_recipe_and_data_from_the_run(tmp_path, monkeypatch):
    source = str(write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 20)))
    fields = [
        "network=lenet5",
        "weights=none",
        "image_size=32",
        "resize_size=32",
        "epochs=1",
        "probe_epochs=1",
    ]
    settings = [word for field in fields for word in ("--set", field)]
    stop_after(monkeypatch, 1)
    begun = CliRunner().invoke(
        train_command, ["--data", source, "--out", str(tmp_path / "run"), *settings]
    )
    assert begun.exit_code == 1
    monkeypatch.undo()
    resumed = CliRunner().invoke(
        train_command, ["--resume", "--out", str(tmp_path / "run")], catch_exceptions=False
    )
    assert resumed.exit_code == 0
    assert [
        json.loads(line)["epoch"]
        for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    ] == [1, 2]
    for arguments, said in (
        (["--resume"], "--resume needs --out RUN"),
        ([], "Missing option '--data'"),
    ):
        refused = CliRunner().invoke(train_command, arguments)
        assert refused.exit_code == 2
        assert said in refused.output


def test_waiting_counts_epochs_that_are_not_better_and_the_later_of_equals_is_kept():
    progress = Progress("train")
    seen = []
    for accuracy, mark in [(0.5, 1.0), (0.4, 2.0), (0.5, 3.0), (0.6, 4.0)]:
        progress = progress.after(accuracy, {"mark": torch.tensor(mark)})
        seen.append((progress.waited, float(progress.best["mark"])))
    assert seen == [(0, 1.0), (1, 1.0), (2, 3.0), (0, 4.0)]
