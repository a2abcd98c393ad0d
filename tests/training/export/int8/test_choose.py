"""Which images calibrate int8 and which judge it, and what is said where they cannot."""

import dataclasses

import pytest

from models.errors import ConfigError, DataError
from models.package.manifest import PreprocessSpec
from tests.training.photos import COLOURS, in_memory, photo
from training.data.source import Dataset, Example
from training.export.int8.choose import (
    Int8Options,
    apart,
    calibration_images,
    find_int8,
    judging_images,
    require_enough,
)

SPEC = PreprocessSpec(resize_size=32, crop=(32, 32))


def photos(count, colours=tuple(COLOURS), *, split="train", first_seed=0):
    """*count* different photos, of each of *colours* in turn."""
    return tuple(
        Example(
            name=f"{split}/{index}.png",
            label=list(COLOURS).index(colours[index % len(colours)]),
            encoded=photo(colours[index % len(colours)], first_seed + index),
        )
        for index in range(count)
    )


def found_from(dataset, **options):
    """The search itself is not reached: an empty model would be an error of another kind."""
    return find_int8(b"", dataset, SPEC, Int8Options(**options), lambda candidate: None)


def test_calibration_images_of_one_class_are_refused():
    dataset = dataclasses.replace(
        in_memory(train=20, held_out=4),
        splits={**in_memory(train=1, held_out=4).splits, "train": photos(20, ("green",))},
    )
    expected = (
        r"^all 20 calibration images are of one class: activations that other classes cause would"
        r" be cut off\. Calibrate on a split with every class$"
    )
    with pytest.raises(DataError, match=expected):
        found_from(dataset)


def test_too_few_calibration_images_are_refused():
    dataset = in_memory(train=5, held_out=4)
    expected = (
        r"^15 calibration images remain without those that judge; 16 are needed to see how large"
        r" activations get: "
        r"add images, choose another --calibration-split, or export fp32$"
    )
    with pytest.raises(DataError, match=expected):
        found_from(dataset)
    require_enough(photos(16))


@pytest.mark.parametrize("judge", ["val", "test"])
def test_a_copy_of_what_judges_does_not_calibrate_whatever_its_name(judge):
    judges = photos(12, split=judge, first_seed=500)
    copies = tuple(
        dataclasses.replace(example, name=f"train/copy-{example.name}") for example in judges
    )
    splits = {
        "train": (*photos(14), *copies),
        "val": photos(12, split="val", first_seed=700),
        "test": photos(12, split="test", first_seed=900),
    }
    dataset = Dataset("memory", tuple(COLOURS), {**splits, judge: judges})
    assert len(splits["train"]) == 26
    with pytest.raises(
        DataError, match=r"^14 calibration images remain without those that judge; "
    ):
        found_from(dataset)
    assert apart(splits["train"], judges) == splits["train"][:14]


def test_candidates_are_judged_on_val_and_the_held_out_split_calibrates_nothing():
    dataset = in_memory(train=20, held_out=6)
    assert judging_images(dataset, "train") == dataset.splits["val"]
    assert judging_images(dataset, "val") == dataset.splits["test"]
    assert calibration_images(dataset, "train") == dataset.splits["train"]
    refused = (
        r"^split test of memory cannot calibrate int8: it is the one that judges it; calibrate on"
        r" train$"
    )
    with pytest.raises(DataError, match=refused):
        found_from(dataset, calibration_split="test")

    two = Dataset(
        "memory", dataset.labels, {split: dataset.splits[split] for split in ("train", "val")}
    )
    assert judging_images(two, "train") == two.splits["val"]
    with pytest.raises(DataError, match=refused.replace("test", "val")):
        found_from(two, calibration_split="val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy_budget_points": -0.5}, r"^accuracy budget is -0\.5 points; expected 0 to 100$"),
        (
            {"accuracy_budget_points": float("nan")},
            r"^accuracy budget is nan points; expected 0 to 100$",
        ),
        ({"time_budget_s": float("nan")}, r"^time budget is nan s; expected 0 or more$"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Int8Options(**options)
