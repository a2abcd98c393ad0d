"""The training loop: it learns, it does the same twice, it says why it stops, and it touches only
what it was told to train.
"""

import dataclasses
import io
import re
from collections import Counter

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from models.errors import ConfigError, TrainingError
from models.networks.catalogue import build
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training import progress
from training.data import source
from training.data.loader import evaluation_batches, limited, normalised, train_loader
from training.data.source import Dataset, Example
from training.fit import preparation
from training.fit.loop import preprocess_spec, train
from training.runs.run import WEIGHTS_FILE, EpochResult, Run, open_run
from training.summary import BEST, of_run

SMALL = dataclasses.replace(TINY, batch_size=12)
FORK = "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
"""Python 3.12 and later warn about what the DataLoader of torch does."""


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return in_memory(train=8, held_out=2)


def losses(config, dataset, out):
    return [line["train_loss"] for line in train(config, dataset, out).metrics()]


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.filterwarnings(FORK)])]
)
def test_the_same_seed_gives_the_same_losses(photos, tmp_path, workers):
    """To the last bit: one machine, one number of threads, one order of additions."""
    config = dataclasses.replace(SMALL, epochs=2, decode_workers=workers)
    first = losses(config, photos, tmp_path / "first")
    torch.rand(17)  # what continued before must not matter
    again = losses(config, photos, tmp_path / "again")
    other = losses(dataclasses.replace(config, seed=config.seed + 1), photos, tmp_path / "other")

    assert len(first) == 2
    assert again == first
    assert all(abs(a - b) > 1e-3 for a, b in zip(first, other, strict=True))


def test_training_learns_and_keeps_the_weights_of_the_best_epoch(photos, tmp_path):
    config = dataclasses.replace(SMALL, epochs=8, learning_rate=2e-3)
    run = train(config, photos, tmp_path / "run")
    epochs = run.metrics()
    best = max(line["val_accuracy"] for line in epochs)
    assert [line["epoch"] for line in epochs] == list(range(1, 9))
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    assert best >= 5 / 6
    # A cosine to 0, after warm-up to the peak.
    assert epochs[0]["learning_rate"] > 1e-3
    assert epochs[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)

    network = build(config.network, num_classes=3)
    network.load_state_dict(run.load_weights())
    network.eval()
    (pixels_NHWC,) = evaluation_batches(photos.splits["val"], preprocess_spec(config), 32)
    with torch.inference_mode():
        answered = network(normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))).argmax(
            dim=1
        )
    truth = torch.tensor([example.label for example in photos.splits["val"]])
    assert float((answered == truth).float().mean()) == pytest.approx(best)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(photos, tmp_path):
    # Each step then multiplies the weights by -50,000.
    said = (
        r"^the loss became (nan|inf) in epoch \d, batch [12] of 2; learning_rate is 0\.5: train"
        r" again with 0\.05\. "
    )
    config = dataclasses.replace(
        SMALL, learning_rate=0.5, weight_decay=1e5, warmup_share=0.0, epochs=9
    )
    with pytest.raises(
        TrainingError,
        match=said
        + r"The images of the batch: (train/\w+-\d\.png, ){7}train/\w+-\d\.png and 4 more$",
    ):
        train(config, photos, tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()


def test_frozen_features_stay_bit_equal_with_their_batch_statistics(photos, tmp_path):
    torch.manual_seed(11)
    start = build("resnet18", num_classes=3).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    config = dataclasses.replace(
        SMALL, weights=str(tmp_path / "start.safetensors"), freeze="features", weight_decay=0.1
    )
    trained = train(config, photos, tmp_path / "run").load_weights()

    features = [key for key in start if key.startswith("features.")]
    assert sum("running_mean" in key for key in features) == 20
    assert [key for key in features if not torch.equal(start[key], trained[key])] == []
    assert not torch.equal(start["head.linear.weight"], trained["head.linear.weight"])


def test_unfrozen_features_are_trained(photos, tmp_path):
    torch.manual_seed(SMALL.seed)
    start = build("resnet18", num_classes=3).state_dict()
    trained = train(SMALL, photos, tmp_path / "run").load_weights()
    # Every tensor of more than one dimension, every running mean; a scale may start and stay at a
    # value by chance.
    assert [
        key
        for key in start
        if (start[key].ndim > 1 or "running_mean" in key) and torch.equal(start[key], trained[key])
    ] == []


def test_a_limit_takes_as_evenly_from_the_classes_as_can_be(photos):
    crooked = [
        example
        for example in photos.splits["train"]
        if example.label == 0 or example.name.endswith("0.png")
    ]
    assert Counter(example.label for example in crooked) == {0: 8, 1: 1, 2: 1}
    assert Counter(example.label for example in limited(crooked, 6)) == {0: 4, 1: 1, 2: 1}
    assert Counter(example.label for example in limited(photos.splits["train"], 7)) == {
        0: 3,
        1: 2,
        2: 2,
    }
    assert limited(crooked, 0) == limited(crooked, 10) == crooked

    config = dataclasses.replace(SMALL, max_train_images=6, batch_size=4)
    batches = list(
        train_loader(limited(photos.splits["train"], 6), config, preprocess_spec(config))
    )
    assert Counter(label for _, labels_N, _, _ in batches for label in labels_N.tolist()) == {
        0: 2,
        1: 2,
        2: 2,
    }


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 32, [3]), (2, 2, [2]), (3, 2, [2])],
)
def test_no_batch_has_a_single_image(photos, images, batch_size, sizes):
    """Batch normalisation of a 1x1 feature map needs two."""
    config = dataclasses.replace(SMALL, batch_size=batch_size)
    batches = list(train_loader(photos.splits["train"][:images], config, preprocess_spec(config)))
    assert [len(labels_N) for _, labels_N, _, _ in batches] == sizes
    assert all(
        images_N3HW.dtype == torch.uint8 and images_N3HW.shape[1:] == (3, 32, 32)
        for images_N3HW, _, _, _ in batches
    )


def test_without_random_crops_training_sees_what_evaluation_sees(photos):
    config = dataclasses.replace(SMALL, crop_scale_min=1.0, horizontal_flip=False, batch_size=24)
    spec = preprocess_spec(config)
    ((images_N3HW, labels_N, _, _),) = train_loader(photos.splits["train"], config, spec)
    (pixels_NHWC,) = evaluation_batches(photos.splits["train"], spec, 24)
    seen = sorted(
        (label, image.permute(1, 2, 0).numpy().tobytes())
        for image, label in zip(images_N3HW, labels_N.tolist(), strict=True)
    )
    expected = sorted(
        (e.label, pixels_HWC.tobytes())
        for e, pixels_HWC in zip(photos.splits["train"], pixels_NHWC, strict=True)
    )
    assert seen == expected


def test_an_interrupted_run_leaves_no_weights(photos, tmp_path, monkeypatch):
    def interrupted(self, result):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, photos, tmp_path / "run")
    monkeypatch.undo()

    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "images.jsonl",
        "run.json",
        "tensorboard",
    ]
    with pytest.raises(TrainingError, match="it was not finished; continue it with"):
        open_run(tmp_path / "run").load_weights()
    with pytest.raises(
        TrainingError,
        match="is not empty; choose another --out, continue it with --resume, or remove it",
    ):
        train(SMALL, photos, tmp_path / "run")


def test_nothing_is_written_for_an_unknown_network(photos, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown network 'resnet19'\. Did you mean resnet18\?"):
        train(dataclasses.replace(SMALL, network="resnet19"), photos, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_names_with_brackets_are_printed_as_they_are(tmp_path, monkeypatch):
    """Rich takes [/b] for a closing tag, and ends with an error of its own where none is open."""
    stream = io.StringIO()
    for module in (preparation, source):
        monkeypatch.setattr(module, "CONSOLE", Console(file=stream, soft_wrap=True))
    dataset = in_memory(train=8, held_out=2)
    splits = dict(dataset.splits) | {
        "val": (*dataset.splits["val"], Example(name="a[/b].png", label=0, encoded=b"[/c]junk"))
    }
    run = train(SMALL, Dataset("folder:[bold]x[/y]", dataset.labels, splits), tmp_path / "run")

    assert (
        "left out a[/b].png: received 8 bytes that begin with b'[/c]junk', which is not an image"
        in stream.getvalue()
    )
    assert "folder:[bold]x[/y]: 3 classes, 24 train, 6 val, 6 test images" in stream.getvalue()
    assert list(run.record.unreadable) == ["a[/b].png"]


def test_steps_pass_everything_on_and_leave_the_terminal_clean_after_an_error(monkeypatch):
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "CONSOLE", terminal)
    assert list(progress.steps(range(3), total=3, title="epoch")) == [0, 1, 2]

    def fail():
        for item in progress.steps(range(3), total=3, title="epoch"):
            raise ValueError(item)

    for _ in range(2):
        with pytest.raises(ValueError, match="0"):
            fail()
        # A hidden cursor is what a bar that was not stopped leaves behind.
        assert re.findall(r"\x1b\[\?25[lh]", stream.getvalue())[-1] == "\x1b[?25h"


@pytest.mark.parametrize(
    ("steps_per_s", "images", "said"),
    [(2.5, 32, "80 images/s"), (2.5, 0, "2.5 steps/s"), (None, 32, "")],
)
def test_a_bar_tells_images_per_second(steps_per_s, images, said):
    assert progress._rate(steps_per_s, images) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (5399.0, "90 min"), (9000.0, "2.5 h")],
)
def test_the_time_left_is_short(seconds, said):
    assert progress.short_time(seconds) == said


def test_no_terminal_gets_no_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=stream))
    assert list(progress.steps("ab", total=2, title="epoch")) == ["a", "b"]
    assert stream.getvalue() == ""


def test_a_burst_of_one_scene_is_not_all_that_is_taken():
    """Neighbours by name are often one scene: of 100 frames of 10 scenes, all 10 are seen."""
    frames = [
        Example(name=f"{label}/frame_{index:04d}.png", label=label, encoded=b"")
        for label in range(2)
        for index in range(100)
    ]
    taken = limited(frames, 20)
    scenes = Counter((example.label, int(example.name[-8:-4]) // 10) for example in taken)
    assert scenes == {(label, scene): 1 for label in range(2) for scene in range(10)}
    assert limited(frames, 20) == taken


def test_the_last_lines_name_the_kept_epoch_and_not_the_last_one(photos, tmp_path):
    run = train(SMALL, photos, tmp_path / "run")
    worse = dataclasses.replace(
        EpochResult(**run.metrics()[-1]), epoch=99, val_accuracy=0.0, confused=()
    )
    run.log(worse)
    kept = run.kept()
    assert kept["val_accuracy"] == max(line["val_accuracy"] for line in run.metrics())
    assert kept["epoch"] != 99
    first, second, *_, last = of_run(run)
    assert first == f"kept: epoch {kept['epoch']} of {len(run.metrics())}, {BEST}"
    assert second.startswith(f"accuracy {kept['val_accuracy']:.1%} (")
    assert last == f"run {run.path}: next, `loupe export {run.path} --out PACKAGE`"


def test_the_validation_loss_is_the_plain_cross_entropy_of_the_kept_weights(photos, tmp_path):
    """Without label smoothing, which the training loss has."""
    config = dataclasses.replace(SMALL, label_smoothing=0.3, epochs=1)
    run = train(config, photos, tmp_path / "run")
    [line] = run.metrics()
    network = build(config.network, num_classes=3)
    network.load_state_dict(run.load_weights())
    spec, examples = preprocess_spec(config), photos.splits["val"]
    [pixels_NHWC] = evaluation_batches(examples, spec, 64)
    inputs = normalised(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))
    with torch.inference_mode():
        logits_NK = network.eval()(inputs)
    labels_N = torch.tensor([example.label for example in examples])
    expected = float(torch.nn.functional.cross_entropy(logits_NK, labels_N))
    assert line["val_loss"] == pytest.approx(expected, rel=1e-4)
    assert line["val_images"] == len(examples)
    wrong = int((logits_NK.argmax(1) != labels_N).sum())
    assert sum(count for _, _, count in line["confused"]) == wrong
