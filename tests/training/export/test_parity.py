"""The gates of an export: what they let through, what they turn down, and what they say then.

Letters used in shapes: N images, K classes.
"""

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import ExportError
from models.package.manifest import PreprocessSpec
from tests.training.photos import COLOURS, photo
from training.data.source import Example
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


def check(expected, found, **limits):
    check_accuracy(answers(expected), answers(found), LABELS_N, EXAMPLES, **limits)


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
    labels_N, examples = np.zeros(100, np.int64), EXAMPLES[:100]
    for lost, passes in ((1, True), (2, False)):
        found_NK = answers(dict.fromkeys(range(lost), WRONG))[:100]
        if passes:
            check_accuracy(
                answers({})[:100], found_NK, labels_N, examples, most_points=1.0, ties=0.0
            )
        else:
            with pytest.raises(
                ExportError, match=r"2\.00 points are lost, more than 1; worst image: 000\.png$"
            ):
                check_accuracy(
                    answers({})[:100], found_NK, labels_N, examples, most_points=1.0, ties=0.0
                )


class _Bright(nn.Module):
    """As an exported graph: which of two classes an image is of is how bright it is."""

    def forward(self, image):
        bright_N = image.float().mean(dim=(1, 2, 3)) / 255.0
        probabilities_NK = torch.stack([bright_N, 1.0 - bright_N], dim=1)
        return probabilities_NK, probabilities_NK


class _Recording:
    """A session of `_Bright` that remembers the batches that it ran."""

    def __init__(self):
        self.sizes = []

    def run(self, pixels_NHWC, outputs):
        self.sizes.append(len(pixels_NHWC))
        return {"probabilities": _Bright()(torch.from_numpy(pixels_NHWC))[1].numpy()}


@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_batch_size_is_run_however_few_images_there_are(count):
    examples = [
        Example(name=f"{index}.png", label=0, encoded=photo(list(COLOURS)[index % 3], index))
        for index in range(count)
    ]
    session = _Recording()
    parity = check_parity(
        _Bright(), session, examples, PreprocessSpec(resize_size=32, crop=(32, 32))
    )
    assert set(BATCH_SIZES) <= set(session.sizes)
    assert (parity.images, parity.batch_sizes) == (count, (1, 2, 7, 32))
    assert parity.top1_agreement == 1.0
