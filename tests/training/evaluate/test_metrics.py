"""The figures of a report, each against a value from outside: a table, a sum by hand, scikit-learn,
or the parameter that made the data.
"""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from models.errors import DataError
from models.package.manifest import Interval, PreprocessSpec
from tests.training.photos import COLOURS, photo
from training.data.source import Example
from training.evaluate.metrics import (
    binomial_at_most,
    class_scores,
    confusion,
    expected_calibration_error,
    fit_temperature,
    top_k_hits,
    wilson,
)
from training.evaluate.predictions import (
    Predictions,
    bootstrap_ece,
    evaluation,
    predictions,
)


def softmax(logits_NK):
    shifted = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


def sampled(*, count, classes, temperature, seed=0):
    """Logits, and labels drawn from their softmax at *temperature*: so that is what a fit must
    find.
    """
    rng = np.random.default_rng(seed)
    logits_NK = rng.normal(scale=4.0, size=(count, classes)).astype(np.float32)
    cumulative_NK = softmax(logits_NK / temperature).cumsum(axis=1)
    labels_N = (rng.random((count, 1)) < cumulative_NK).argmax(axis=1).astype(np.int64)
    return logits_NK, labels_N


def answers_of(probabilities_NK, labels_N):
    examples = [Example(name=str(index), label=int(label)) for index, label in enumerate(labels_N)]
    flat = [0.5] * len(examples)
    return Predictions(
        examples,
        labels_N,
        np.log(probabilities_NK),
        probabilities_NK,
        np.ones((len(examples), 2), np.float32),
        flat,
        flat,
        0.1,
    )


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),  # likewise
        (0, 20, 0.0, 0.1611),  # likewise
        (1, 29, 0.0061, 0.1718),  # likewise
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes, count, low, high):
    interval = wilson(successes, count)
    assert interval.value == successes / count
    # The published values have four decimals.
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)
    assert (interval.confidence, interval.method) == (0.95, "wilson")


def test_an_interval_holds_its_value_even_at_the_ends():
    wrong = [
        (s, n)
        for n in range(1, 200)
        for s in range(n + 1)
        if not 0.0 <= (w := wilson(s, n)).low <= w.value <= w.high <= 1.0
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("most", "count", "share"),
    [
        (3, 10, 0.5),
        (0, 4, 0.5),
        (90, 100, 0.95),
        (17, 20, 1.0),
        (20, 20, 1.0),
        (-1, 5, 0.3),
        (2, 9, 0.0),
    ],
)
def test_binomial_tails_are_scipys(most, count, share):
    assert binomial_at_most(most, count, share) == pytest.approx(
        binom.cdf(most, count, share), rel=1e-9
    )


def test_top_k_counts_the_true_class_among_the_first_k():
    probabilities_NK = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]], np.float32)
    labels_N = np.array([1, 0, 2])
    assert [top_k_hits(probabilities_NK, labels_N, k) for k in (1, 2, 3)] == [1, 2, 3]


def test_confusion_and_class_scores_are_scikit_learns():
    rng = np.random.default_rng(5)
    labels_N = rng.integers(0, 3, 200)
    # Of four classes the last never occurs and the third is never answered: both have a ratio
    # without a denominator.
    probabilities_NK = softmax(
        rng.normal(size=(200, 4)) + 2.0 * np.eye(4)[labels_N] - np.array([0, 0, 99, 0])
    )
    answered_N = probabilities_NK.argmax(axis=1)
    found_KK = confusion(probabilities_NK, labels_N)
    assert found_KK.tolist() == confusion_matrix(labels_N, answered_N, labels=range(4)).tolist()

    scores = class_scores(found_KK, ("a", "b", "c", "d"))
    expected = precision_recall_fscore_support(
        labels_N, answered_N, labels=range(4), zero_division=0.0
    )
    found = np.array(
        [[score.precision, score.recall, score.f1, score.support] for score in scores]
    ).T
    # The same ratios of whole numbers, in float64.
    np.testing.assert_allclose(found, np.array(expected), atol=1e-12)
    assert [score.label for score in scores] == ["a", "b", "c", "d"]


def test_calibration_error_of_an_example_worked_by_hand():
    """Four answers at 90 % with three right, two at 60 % with one right: (4 x |0.75 - 0.9| + 2 x
    |0.5 - 0.6|) / 6.
    """
    probabilities_NK = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2, np.float32)
    labels_N = np.array([0, 0, 0, 1, 1, 0])
    # float32 confidences.
    assert expected_calibration_error(probabilities_NK, labels_N) == pytest.approx(
        0.8 / 6, abs=1e-6
    )


def test_certain_and_right_is_no_calibration_error():
    assert expected_calibration_error(np.eye(3, dtype=np.float32), np.arange(3)) == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits_NK, labels_N = sampled(count=8000, classes=5, temperature=temperature)
    # The sampling error of the estimate is about 2 % here.
    assert fit_temperature(logits_NK, labels_N) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_is_the_minimum_of_the_likelihood():
    logits_NK, labels_N = sampled(count=50, classes=3, temperature=2.0, seed=1)
    found = fit_temperature(logits_NK, labels_N)

    def loss(temperature):
        probabilities_NK = softmax(logits_NK.astype(np.float64) / temperature).astype(np.float64)
        return -np.log(probabilities_NK[np.arange(50), labels_N]).mean()

    # float32 probabilities cannot tell nearer neighbours apart.
    assert loss(found) < min(loss(found * 0.97), loss(found * 1.03))


def test_where_every_answer_is_right_the_temperature_is_not_driven_to_certainty():
    logits_NK = np.array([[2.0, 1.0], [0.5, 1.5], [0.0, 0.1]], np.float32)
    assert fit_temperature(logits_NK, np.array([0, 1, 1])) == 1.0


def test_answers_that_are_wrong_all_along_get_the_flattest_temperature():
    assert fit_temperature(
        np.array([[9.0, 0.0]] * 5, np.float32), np.ones(5, np.int64)
    ) == pytest.approx(20.0, rel=1e-3)


def test_the_bootstrap_interval_holds_the_value_and_is_the_same_each_time():
    logits_NK, labels_N = sampled(count=150, classes=4, temperature=1.0)
    overconfident = answers_of(softmax(logits_NK * 3), labels_N)
    found = bootstrap_ece(overconfident)
    assert found == bootstrap_ece(overconfident)
    assert 0.0 < found.low < found.value < found.high < 1.0
    assert found.method == "basic bootstrap, 200 resamples"
    assert bootstrap_ece(overconfident, resamples=50).method == "basic bootstrap, 50 resamples"


@pytest.mark.parametrize("sharpening", [1.3, 3.0])
def test_the_bootstrap_interval_covers_the_error_that_a_large_sample_has(sharpening):
    """Percentiles of the resamples would cover the smaller error three times in twenty."""

    def sample(count, seed):
        logits_NK, labels_N = sampled(count=count, classes=4, temperature=1.0, seed=seed)
        return softmax(logits_NK * sharpening), labels_N

    truth = expected_calibration_error(*sample(20_000, 99))
    intervals = [bootstrap_ece(answers_of(*sample(300, seed)), resamples=100) for seed in range(20)]
    # About 90 % at this size; a binomial of that share is below 14 of 20 once in four hundred, and
    # the seeds are fixed.
    assert sum(interval.low <= truth <= interval.high for interval in intervals) >= 14


@pytest.mark.parametrize(
    ("classes", "names"), [(2, ["top1", "ece"]), (5, ["top1", "ece"]), (6, ["top1", "top5", "ece"])]
)
def test_five_guesses_are_scored_only_where_they_are_not_all(classes, names):
    logits_NK, labels_N = sampled(count=40, classes=classes, temperature=1.0)
    answers = answers_of(softmax(logits_NK), labels_N)
    figures = evaluation(answers, source="here", split="test", provider="cpu")
    assert list(figures.metrics) == names
    assert all(isinstance(metric, Interval) for metric in figures.metrics.values())
    assert figures.metrics["top1"].value == answers.correct_N.mean()
    assert (figures.data, figures.split, figures.count, figures.provider) == (
        "here",
        "test",
        40,
        "cpu",
    )


class _Brightest:
    """A model that takes the strongest channel for the class, and counts its batches."""

    def __init__(self):
        self.batches = []

    def run(self, pixels_NHWC, outputs):
        self.batches.append(len(pixels_NHWC))
        logits_NK = pixels_NHWC.mean(axis=(1, 2))[:, ::-1].astype(np.float32)
        found = {"logits": logits_NK, "probabilities": softmax(logits_NK), "embedding": logits_NK}
        return {name: found[name] for name in outputs}


def test_a_model_is_asked_in_batches_and_its_answers_stay_in_order():
    examples = [
        Example(name=f"{index}", label=index % 3, encoded=photo(list(COLOURS)[index % 3], index))
        for index in range(70)
    ]  # blue, green, red: the channels backwards
    model = _Brightest()
    found = predictions(model.run, examples, PreprocessSpec(resize_size=32, crop=(32, 32)))
    assert model.batches == [32, 32, 6]
    assert found.labels_N.tolist() == [index % 3 for index in range(70)]
    assert found.correct_N.all()
    assert found.embedding_ND.shape == (70, 3)
    reference = found.drift_reference()
    assert (reference.count, reference.predicted) == (70, (24, 23, 23))


def test_no_images_are_no_judgement():
    with pytest.raises(DataError, match=r"^evaluate: no images to judge on$"):
        predictions(_Brightest().run, [], PreprocessSpec())


def test_an_image_that_became_unreadable_is_named():
    examples = [
        Example(name="red/1.png", label=0, encoded=photo("red", 0)),
        Example(name="red/2.png", label=0, encoded=b"junk"),
    ]
    with pytest.raises(
        DataError, match=r"^red/2\.png: received 4 bytes that begin with b'junk', which is no image"
    ):
        predictions(_Brightest().run, examples, PreprocessSpec())
