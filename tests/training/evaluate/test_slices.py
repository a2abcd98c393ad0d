"""Slices: every image is in one third of each property, and a mark needs an interval that lies
below the whole.
"""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from training.data.source import Example
from training.evaluate.metrics import wilson
from training.evaluate.predictions import Predictions
from training.evaluate.slices import sliced


def encoded(width, height, *, orientation=1, image_format="JPEG"):
    exif = Image.Exif()
    exif[274] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, image_format, exif=exif)
    return stream.getvalue()


def answers_with(images, right, *, brightness=None, sharpness=None):
    count = len(images)
    probabilities_NK = np.where(np.asarray(right)[:, None], [[0.9, 0.1]], [[0.1, 0.9]]).astype(
        np.float32
    )
    flat = [0.5] * count
    return Predictions(
        examples=[
            Example(name=str(index), label=0, encoded=image) for index, image in enumerate(images)
        ],
        labels_N=np.zeros(count, np.int64),
        logits_NK=np.log(probabilities_NK),
        probabilities_NK=probabilities_NK,
        embedding_ND=np.ones((count, 2), np.float32),
        brightness_N=brightness or flat,
        sharpness_N=sharpness or flat,
        model_s=0.1,
    )


def test_size_is_that_of_the_encoded_image_in_thirds():
    images = [
        encoded(10 * side, 20, image_format=kind)
        for kind in ("JPEG", "PNG", "WEBP")
        for side in (3, 1, 2)
    ]
    found = sliced(answers_with(images, [True] * 8 + [False]))
    assert [(part.by, part.name, part.low, part.high, part.count) for part in found.slices] == [
        ("size", "smallest", 200.0, 200.0, 3),
        ("size", "middle", 400.0, 400.0, 3),
        ("size", "largest", 600.0, 600.0, 3),
    ]
    assert [part.accuracy for part in found.slices] == [wilson(3, 3), wilson(2, 3), wilson(3, 3)]
    assert found.alike == ("brightness", "sharpness", "exif")
    # Overall 8 of 9; the interval of 1 of 3 ends at 0.79, that of 2 of 3 at 0.94.
    assert found.by_chance == pytest.approx(3 * binom.cdf(1, 3, 8 / 9))


def test_rotated_images_that_are_mostly_wrong_are_marked():
    images = [encoded(20, 30, orientation=6)] * 20 + [encoded(20, 30)] * 100
    found = sliced(answers_with(images, [index >= 15 for index in range(120)]))
    rotated, upright = found.slices
    assert (
        rotated.by,
        rotated.name,
        rotated.low,
        rotated.count,
        rotated.accuracy,
        rotated.weak,
    ) == (
        "exif",
        "rotated",
        None,
        20,
        wilson(5, 20),
        True,
    )
    assert (upright.name, upright.count, upright.weak) == ("not rotated", 100, False)


def test_a_low_share_of_few_images_is_not_marked():
    images = [encoded(20, 30, orientation=3)] * 2 + [encoded(20, 30)] * 20
    rotated, _ = sliced(answers_with(images, [False, True] + [True] * 16 + [False] * 4)).slices
    assert (rotated.accuracy.value, rotated.weak) == (0.5, False)


@pytest.mark.parametrize("by", ["brightness", "sharpness"])
def test_thirds_have_as_many_images_as_can_be_and_none_is_lost(by):
    values = np.random.default_rng(0).permutation(90) / 90
    found = sliced(answers_with([encoded(8, 8)] * 90, [True] * 90, **{by: values.tolist()}))
    assert [(part.by, part.count) for part in found.slices] == [(by, 30)] * 3
    assert [part.low for part in found.slices] == pytest.approx([0.0, 30 / 90, 60 / 90])
    assert [part.high for part in found.slices] == pytest.approx([29 / 90, 59 / 90, 89 / 90])


def test_equal_values_stay_together():
    found = sliced(
        answers_with([encoded(8, 8)] * 10, [True] * 10, brightness=[0.1] * 8 + [0.9] * 2)
    )
    assert [(part.name, part.count) for part in found.slices] == [("darkest", 8), ("brightest", 2)]


def test_one_image_alone_has_nothing_to_compare_with():
    assert sliced(answers_with([encoded(8, 8)], [True])).slices == ()


def test_marks_by_chance_are_what_a_model_that_is_equally_good_everywhere_gets():
    """Simulated: three thirds of forty images, each right nineteen times in twenty."""
    rng = np.random.default_rng(4)
    hits = rng.binomial(40, 0.95, size=20_000)
    marked = np.mean(
        [wilson(k, 40).high < 0.95 for k in range(41)] @ (hits[None, :] == np.arange(41)[:, None])
    )
    values = np.arange(120) / 120
    found = sliced(
        answers_with(
            [encoded(8, 8)] * 120,
            [index % 20 != 0 for index in range(120)],
            brightness=values.tolist(),
        )
    )
    # Three standard errors of the simulation.
    assert found.by_chance == pytest.approx(3 * marked, abs=3 * 3 * np.sqrt(marked / 20_000))


def test_a_faultless_model_has_no_mark_to_expect():
    assert sliced(answers_with([encoded(8, 8), encoded(9, 9)], [True, True])).by_chance == 0.0
