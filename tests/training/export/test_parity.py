"""The gates of an export: what they let through, what they turn down, and what they say then.

Letters used in shapes: N images, K classes.
"""

import numpy as np
import pytest

from models.errors import ExportError
from models.package.manifest import PreprocessSpec
from tests.training.photos import COLOURS, photo
from training.data.source import Example
from training.evaluate.predictions import Predictions
from training.export.parity import (
    BATCH_SIZES,
    MOST_LOSS_POINTS,
    TOLERANCES,
    check_accuracy,
    check_parity,
)

EXAMPLES = [Example(name=f"{index:03d}.png", label=0, encoded=b"") for index in range(150)]
LABELS_N = np.zeros(150, np.int64)
SURE, TIED, WRONG = (0.9, 0.1), (0.51, 0.49), (0.1, 0.9)


def answers(changed):
    """Two probabilities of each of 150 images of class 0, [N,K]: `SURE`, but for those in
    *changed*.
    """
    found_NK = np.tile(np.float32(SURE), (150, 1))
    for index, probabilities in changed.items():
        found_NK[index] = probabilities
    return found_NK


def check(expected, found, *, count=150, **limits):
    """The gate, for the first *count* images."""
    found_NK = answers(found)[:count]
    predictions = Predictions(
        EXAMPLES[:count], LABELS_N[:count], found_NK, found_NK, found_NK, [], [], 0.0
    )
    check_accuracy(answers(expected)[:count], predictions, **limits)


def test_of_int8_every_lost_image_counts_against_the_budget():
    # One of 150 images is 0.67 points.
    check({}, {7: WRONG}, most_points=0.67, ties=0.0)
    expected = (
        r"^accuracy gate: of 150 images the exported model answers 149 right and torch 150: 0\.67"
        r" points are lost, more than 0\.5; "
        r"worst image: 007\.png$"
    )
    with pytest.raises(ExportError, match=expected):
        check({}, {7: WRONG}, most_points=0.5, ties=0.0)
    # A tie is no excuse: the user's budget says what may be lost.
    with pytest.raises(ExportError, match=r"0\.67 points are lost, more than 0;"):
        check({7: TIED}, {7: WRONG}, most_points=0.0, ties=0.0)
    # What is gained elsewhere makes up for it.
    check({8: WRONG}, {7: WRONG}, most_points=0.0, ties=0.0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_of_a_float_precision_only_images_that_were_tied_may_turn(precision):
    limits = {"most_points": MOST_LOSS_POINTS[precision], "ties": TOLERANCES[precision]}
    tied = (0.5 + 0.9 * TOLERANCES[precision], 0.5 - 0.9 * TOLERANCES[precision])
    turned = tied[::-1]
    check(dict.fromkeys(range(10), tied), dict.fromkeys(range(10), turned), **limits)
    expected = (
        r"^accuracy gate: of 150 images, without 10 that are tied, the exported model answers 139"
        r" right and torch 140: 0\.67 points are lost, "
        rf"more than {MOST_LOSS_POINTS[precision]:g}; worst image: 149\.png$"
    )
    with pytest.raises(ExportError, match=expected):
        check(
            dict.fromkeys(range(10), tied),
            {149: WRONG, **dict.fromkeys(range(10), turned)},
            **limits,
        )


def test_a_budget_of_one_point_lets_exactly_one_point_through():
    check({}, {0: WRONG}, count=100, most_points=1.0, ties=0.0)
    with pytest.raises(
        ExportError, match=r"2\.00 points are lost, more than 1; worst image: 000\.png$"
    ):
        check({}, {0: WRONG, 1: WRONG}, count=100, most_points=1.0, ties=0.0)


def by_brightness(pixels_NHWC, outputs):
    """A network that takes the class of an image from its brightness."""
    bright_N = pixels_NHWC.mean(axis=(1, 2, 3), dtype=np.float32) / 255.0
    return {"probabilities": np.stack([bright_N, 1.0 - bright_N], axis=1)}


@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_batch_size_is_run_however_few_images_there_are(count):
    examples = [
        Example(name=f"{index}.png", label=0, encoded=photo(list(COLOURS)[index % 3], index))
        for index in range(count)
    ]
    sizes = []

    def recorded(pixels_NHWC, outputs):
        sizes.append(len(pixels_NHWC))
        return by_brightness(pixels_NHWC, outputs)

    spec = PreprocessSpec(resize_size=32, crop=(32, 32))
    parity = check_parity(by_brightness, recorded, examples, spec)
    assert set(BATCH_SIZES) <= set(sizes)
    assert (parity.images, parity.batch_sizes) == (count, (1, 2, 7, 32))
    assert parity.top1_agreement == 1.0
