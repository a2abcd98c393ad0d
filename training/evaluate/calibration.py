"""How far a model's confidence can be trusted, and what it gains by abstaining.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from models.errors import ExportError
from models.package.manifest import Interval, PreprocessSpec
from training.data.predict import Runner, predict
from training.data.source import Example
from training.evaluate.metrics import (
    ECE_BINS,
    Floats,
    Labels,
    expected_calibration_error,
    fit_temperature,
    wilson,
)

CURVE_POINTS = 100
FEWEST_ANSWERED = 10
"""Images that a threshold must leave answered: the accuracy of fewer says nothing."""

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies between two bounds; one with confidence 1 is in the last."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean of its images."""
    accuracy: Interval


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence at one temperature. Empty bins are left out."""

    temperature: float
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class AbstentionPoint:
    """What comes of answering only at a confidence of `threshold` or more."""

    threshold: float
    answered: float
    """Share of all images."""
    accuracy: float
    """Of the answered images."""


def reliability(
    probabilities_NK: Floats, labels_N: Labels, *, temperature: float, bins: int = ECE_BINS
) -> Reliability:
    """Confidence against accuracy over equal-width bins, the bins of the calibration error.

    Source: Guo et al. 2017, section 2.
    """
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    filled = []
    for index in np.unique(bin_N):
        inside = bin_N == index
        low, high = index / bins, (index + 1) / bins
        count, right = int(inside.sum()), int(correct_N[inside].sum())
        confidence = float(confidence_N[inside].mean())
        filled.append(Bin(float(low), float(high), count, confidence, wilson(right, count)))
    error = expected_calibration_error(probabilities_NK, labels_N, bins)
    return Reliability(temperature, error, tuple(filled))


def abstention_curve(confidence_N: Floats, correct_N: Hits) -> tuple[AbstentionPoint, ...]:
    """A point for each confidence that occurs, from answering the surest image alone to all."""
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N, hits_N = confidence_N[order], np.cumsum(correct_N[order])
    # Images of equal confidence are answered together: a point stands at the last of them.
    last = [*np.flatnonzero(np.diff(sorted_N)), len(order) - 1]
    return tuple(
        AbstentionPoint(float(sorted_N[i]), (int(i) + 1) / len(order), float(hits_N[i] / (i + 1)))
        for i in last
    )


def thinned(points: Sequence[AbstentionPoint]) -> tuple[AbstentionPoint, ...]:
    """At most `CURVE_POINTS` of *points*, evenly spaced."""
    count = min(len(points), CURVE_POINTS)
    places = np.linspace(0, len(points) - 1, count).round().astype(int)
    return tuple(points[place] for place in places)


def point_reaching(
    points: Sequence[AbstentionPoint], accuracy: float, *, count: int
) -> AbstentionPoint | None:
    """The point that answers most with an accuracy of at least *accuracy*; None if there is none.

    *points* are those of *count* images. Points with fewer than `FEWEST_ANSWERED` images answered
    do not count.
    """
    reaching = (point for point in _enough(points, count) if point.accuracy >= accuracy)
    return max(reaching, key=lambda point: point.answered, default=None)


def abstain_threshold(confidence_N: Floats, correct_N: Hits, accuracy: float) -> float:
    """The smallest threshold, 0 to 1, at which the answered images have an accuracy of *accuracy*.

    At least `FEWEST_ANSWERED` images must be answered. Rounded down to six decimals, so that the
    image it was found at is still answered. Raises `ExportError` with the best accuracy available.
    """
    count, curve = len(confidence_N), abstention_curve(confidence_N, correct_N)
    found = point_reaching(curve, accuracy, count=count)
    if found is not None:
        # If all are answered, there is nothing to abstain from.
        return 0.0 if found.answered == 1.0 else math.floor(found.threshold * 1e6) / 1e6
    if count < FEWEST_ANSWERED:
        raise ExportError(
            f"abstain gate: {count} validation images are too few to choose a"
            f" threshold, {FEWEST_ANSWERED} are needed; leave out --abstain-accuracy, or add images"
        )
    best = max(_enough(curve, count), key=lambda point: point.accuracy)
    raise ExportError(
        f"abstain gate: no threshold reaches an accuracy of {accuracy:.2%} on the"
        f" {count} validation images; the best is {best.accuracy:.2%}, answering"
        f" {best.answered:.0%} of them at {best.threshold:.3f}; lower --abstain-accuracy, or"
        " leave it out"
    )


def _enough(points: Sequence[AbstentionPoint], count: int) -> list[AbstentionPoint]:
    """Those of *points*, on *count* images, with `FEWEST_ANSWERED` images answered or more."""
    return [point for point in points if round(point.answered * count) >= FEWEST_ANSWERED]


def calibrated(
    run: Runner,
    validation: Sequence[Example],
    spec: PreprocessSpec,
    *,
    abstain_accuracy: float | None,
) -> tuple[float, float]:
    """Temperature and abstain threshold from the *validation* images, for which *run* gives logits.

    The threshold is 0 without *abstain_accuracy*. If there is a third split, it is not touched.
    """
    _, found = predict(run, validation, spec, ("logits",), title="calibrate")
    logits_NK = found["logits"]
    labels_N = np.array([example.label for example in validation], dtype=np.int64)
    temperature = round(fit_temperature(logits_NK, labels_N), 6)
    if abstain_accuracy is None:
        return temperature, 0.0
    probabilities_NK = softmax(logits_NK / np.float32(temperature), axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    return temperature, abstain_threshold(probabilities_NK.max(axis=1), correct_N, abstain_accuracy)
