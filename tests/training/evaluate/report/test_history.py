"""The report's training curves and augmented images."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from tests.training.evaluate.report.test_report import SPEC, answers_to, written
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training.evaluate.report.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    accuracy_chart,
    loss_chart,
)
from training.evaluate.report.history import (
    Epoch,
    History,
    augmentation_of,
    augmented_images,
)


def history_of(count, *, kept=2, **fields):
    epochs = tuple(
        Epoch(
            epoch=1 + index,
            phase="train",
            train_loss=1.0 / (1 + index),
            val_loss=fields.get("val_loss", 1.5 / (1 + index)),
            val_accuracy=0.5 + 0.4 * index / max(1, count - 1),
        )
        for index in range(count)
    )
    return History(epochs=epochs, kept=kept, augmentation="mirrored half of the time")


def points(svg, kind):
    [line] = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', svg)
    return [tuple(map(float, place.split(","))) for place in line.split()]


@pytest.mark.parametrize("count", [1, 2, 7, 600])
def test_the_curves_have_a_point_for_each_epoch_inside_the_picture(count):
    history = history_of(count, kept=count)
    loss, accuracy = loss_chart(history), accuracy_chart(history)
    for svg, kind in ((loss, "train"), (loss, "val"), (accuracy, "val")):
        places = points(svg, kind)
        assert len(places) == count
        assert all(LEFT <= x <= WIDTH and TOP <= y <= HEIGHT - BOTTOM for x, y in places)
    assert f">kept: {count}</text>" in loss


def test_the_kept_epoch_is_marked_where_it_lies():
    svg = loss_chart(history_of(9, kept=4))
    [x] = re.findall(r'class="kept" x1="([\d.]+)"', svg)
    assert float(x) == points(svg, "train")[3][0]


def test_one_wild_loss_does_not_flatten_the_others():
    epochs = history_of(100).epochs
    wild = (dataclasses.replace(epochs[0], train_loss=1e6), *epochs[1:])
    svg = loss_chart(dataclasses.replace(history_of(100), epochs=wild))
    places = points(svg, "train")
    assert places[0][1] == TOP
    assert places[1][1] < HEIGHT - BOTTOM - 40
    assert "higher values are cut off" in svg


def test_a_run_of_an_older_release_has_no_validation_loss():
    svg = loss_chart(history_of(3, val_loss=None))
    assert len(points(svg, "train")) == 3
    assert 'class="val"' not in svg


def test_the_phases_are_apart():
    """The training loss of the head and that of the network, on augmented images, are not one."""
    epochs = history_of(6).epochs
    mixed = tuple(dataclasses.replace(one, phase="probe") for one in epochs[:4]) + epochs[4:]
    svg = loss_chart(dataclasses.replace(history_of(6), epochs=mixed))
    lines = re.findall(r'<polyline class="train" points="([^"]*)"', svg)
    assert [len(line.split()) for line in lines] == [4, 2]
    assert ">head</text>" in svg
    assert ">network</text>" in svg


def test_the_page_shows_the_curves_and_loads_nothing(tmp_path):
    answers = answers_to([0, 1, 0], [0, 1, 1], [0.9, 0.8, 0.7])
    pictures = augmented_images(in_memory(train=4, held_out=1).splits["train"], TINY, SPEC)
    history = dataclasses.replace(history_of(3), augmented=pictures)
    written(tmp_path, answers, ("a", "b"), history=history)
    text = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in text
    assert text.count('alt="augmented training image') == 12
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["training"]["kept"], len(report["training"]["epochs"])) == (2, 3)


def test_a_package_without_a_run_has_a_report_without_curves(tmp_path):
    written(tmp_path, answers_to([0, 1], [0, 1], [0.9, 0.8]), ("a", "b"))
    assert "How was it trained?" not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["training"] is None


def test_augmented_images_are_those_of_training_and_disturb_no_other_random_state():
    examples = in_memory(train=8, held_out=1).splits["train"]
    before = torch.get_rng_state()
    first, again = (augmented_images(examples, TINY, SPEC) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first) == 12
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert first[0].size == (TINY.image_size, TINY.image_size)
    assert (
        augmented_images(examples, dataclasses.replace(TINY, epochs=0, probe_epochs=2), SPEC) == ()
    )


def test_the_augmentation_is_named_in_words():
    plain = dataclasses.replace(
        TINY, horizontal_flip=False, crop_scale_min=1.0, augment="none", erasing=0.0
    )
    assert augmentation_of(plain) == "nothing: each image as it is"
    assert augmentation_of(dataclasses.replace(plain, crop_scale_min=0.25, mixup=0.2)) == (
        "cropped to 25% or more of the area, then mixed with another (mixup), not shown"
    )
