"""Reliability, abstention and the threshold that is chosen from it, worked by hand and against the
calibration error.
"""

import numpy as np
import pytest
from scipy.special import softmax

from models.errors import ExportError
from training.evaluate.calibration import (
    AbstentionPoint,
    abstain_threshold,
    abstention_curve,
    point_reaching,
    reliability,
    thinned,
)
from training.evaluate.metrics import expected_calibration_error, wilson
from training.evaluate.report.charts import compact


def sample(count=500, seed=0):
    rng = np.random.default_rng(seed)
    logits_NK = rng.normal(scale=2.0, size=(count, 4)).astype(np.float32)
    return softmax(logits_NK, axis=1), rng.integers(0, 4, count)


def test_bins_hold_every_image_and_sum_to_the_calibration_error():
    probabilities_NK, labels_N = sample()
    found = reliability(probabilities_NK, labels_N, temperature=1.5)
    assert sum(part.count for part in found.bins) == 500
    assert all(part.low <= part.confidence <= part.high for part in found.bins)
    gaps = sum(part.count * abs(part.accuracy.value - part.confidence) for part in found.bins) / 500
    # float32 means.
    assert gaps == pytest.approx(found.ece, abs=1e-6)
    assert found.ece == expected_calibration_error(probabilities_NK, labels_N)
    assert found.temperature == 1.5


def test_a_bin_has_its_accuracy_with_an_interval_and_certainty_is_in_the_last():
    probabilities_NK = np.array([[1.0, 0.0]] * 3 + [[0.45, 0.55]] * 2, np.float32)
    low, high = reliability(
        probabilities_NK, np.array([0, 0, 1, 1, 0]), temperature=1.0, bins=10
    ).bins
    assert (low.low, low.high, low.count, low.accuracy) == (0.5, 0.6, 2, wilson(1, 2))
    assert (high.low, high.high, high.count, high.accuracy) == (0.9, 1.0, 3, wilson(2, 3))


def test_the_curve_answers_the_surest_first_and_equals_together():
    confidence_N = np.array([0.9, 0.5, 0.7, 0.9], np.float32)
    curve = abstention_curve(confidence_N, np.array([True, False, True, False]))
    assert [(point.answered, point.accuracy) for point in curve] == [
        (0.5, 0.5),
        (0.75, pytest.approx(2 / 3)),
        (1.0, 0.5),
    ]
    assert [point.threshold for point in curve] == pytest.approx([0.9, 0.7, 0.5])


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    rng = np.random.default_rng(0)
    confidence_N = rng.random(5000).astype(np.float32)
    curve = thinned(abstention_curve(confidence_N, rng.random(5000) < confidence_N))
    assert len(curve) == 100
    assert curve[0].threshold == confidence_N.max()
    assert (curve[-1].threshold, curve[-1].answered) == (confidence_N.min(), 1.0)


STEPS_N = np.linspace(0.99, 0.01, 50, dtype=np.float32)


def test_the_threshold_is_the_smallest_that_reaches_the_accuracy():
    """Right are the 30 surest of 50: 30 of 40 answered make 75 %."""
    right_N = np.arange(50) < 30
    threshold = abstain_threshold(STEPS_N, right_N, 0.75)
    assert (threshold <= STEPS_N).sum() == 40
    assert threshold == pytest.approx(STEPS_N[39], abs=1e-6)
    assert (abstain_threshold(STEPS_N, right_N, 1.0) <= STEPS_N).sum() == 30


def test_where_all_may_be_answered_there_is_no_threshold():
    assert abstain_threshold(STEPS_N, np.arange(50) < 30, 0.6) == 0.0


def test_an_accuracy_that_is_not_reached_is_refused_with_the_best_there_is():
    right_N = (np.arange(50) % 4 != 0) & (np.arange(50) < 30)
    with pytest.raises(
        ExportError,
        match=(
            r"^abstain gate: no threshold reaches an accuracy of 99\.00% on the 50 validation"
            r" images; the best is 75\.00%, "
            r"answering 24% of them at 0\.770; lower --abstain-accuracy, or leave it out$"
        ),
    ):
        abstain_threshold(STEPS_N, right_N, 0.99)


def test_a_few_lucky_answers_are_no_accuracy():
    """The nine surest alone are right."""
    with pytest.raises(ExportError, match=r"the best is 90\.00%, answering 20% of them"):
        abstain_threshold(STEPS_N, np.arange(50) < 9, 1.0)
    with pytest.raises(
        ExportError,
        match=(
            r"^abstain gate: 9 validation images are too few to choose a threshold, 10 are needed"
        ),
    ):
        abstain_threshold(STEPS_N[:9], np.ones(9, bool), 0.5)


def test_of_the_points_that_reach_an_accuracy_the_one_that_answers_most_is_taken():
    points = [
        AbstentionPoint(0.9, 0.05, 1.0),
        AbstentionPoint(0.8, 0.3, 0.9),
        AbstentionPoint(0.7, 0.6, 0.95),
        AbstentionPoint(0.1, 1.0, 0.8),
    ]
    assert point_reaching(points, 0.9, count=100) == points[2]
    assert point_reaching(points, 0.99, count=100) is None
    assert point_reaching(points, 0.99, count=200) == points[0]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (9949, "9.9k"),
        (9960, "10k"),
        (123_456, "123k"),
        (5_600_000, "5.6M"),
    ],
)
def test_counts_are_short_enough_for_a_bin(count, words):
    assert compact(count) == words
