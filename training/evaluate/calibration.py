"""How far a model's confidence can be trusted, and what it gains by abstaining.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ExportError
from models.package.manifest import Interval
from training.evaluate.metrics import ECE_BINS, Floats, Labels, expected_calibration_error, wilson

CURVE_POINTS = 100
FEWEST_ANSWERED = 10
"""A threshold that leaves fewer images answered is not taken: their accuracy would say nothing."""

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
    """What comes of answering only at a confidence of *threshold* or more."""

    threshold: float
    answered: float
    """Share of all images."""
    accuracy: float
    """Of those answered."""


def softmax(logits_NK: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities of *logits_NK* at *temperature*, as the graph computes them."""
    scaled_NK = logits_NK / np.float32(temperature)
    shifted_NK = np.exp(scaled_NK - scaled_NK.max(axis=1, keepdims=True))
    return np.asarray(shifted_NK / shifted_NK.sum(axis=1, keepdims=True), dtype=np.float32)


def reliability(
    probabilities_NK: Floats, labels_N: Labels, *, temperature: float, bins: int = ECE_BINS
) -> Reliability:
    """Confidence against accuracy over equal-width bins, the ones that the calibration error sums
    over. Source: Guo et al. 2017, section 2.
    """
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    filled = []
    for index in np.unique(bin_N):
        inside = bin_N == index
        count, hits = int(inside.sum()), int(correct_N[inside].sum())
        filled.append(
            Bin(
                int(index) / bins,
                (int(index) + 1) / bins,
                count,
                float(confidence_N[inside].mean()),
                wilson(hits, count),
            )
        )
    return Reliability(
        temperature, expected_calibration_error(probabilities_NK, labels_N, bins), tuple(filled)
    )


def abstention_curve(
    confidence_N: Floats, correct_N: Hits, *, most: int = CURVE_POINTS
) -> tuple[AbstentionPoint, ...]:
    """From answering the surest alone to answering all: one point for each confidence that occurs,
    at most *most* of them, evenly spaced.
    """
    points = _all_points(confidence_N, correct_N)
    if len(points) <= most:
        return points
    return tuple(
        points[index] for index in np.linspace(0, len(points) - 1, most).round().astype(int)
    )


def point_reaching(
    points: Sequence[AbstentionPoint], accuracy: float, *, count: int
) -> AbstentionPoint | None:
    """The point of *points*, on *count* images, that answers most and is right on a share of at
    least *accuracy*; None if there is none.

    Points with fewer than `FEWEST_ANSWERED` images answered do not count.
    """
    reaching = (point for point in telling(points, count=count) if point.accuracy >= accuracy)
    return max(reaching, key=lambda point: point.answered, default=None)


def telling(points: Sequence[AbstentionPoint], *, count: int) -> tuple[AbstentionPoint, ...]:
    """Those of *points*, on *count* images, with `FEWEST_ANSWERED` images answered or more."""
    return tuple(point for point in points if round(point.answered * count) >= FEWEST_ANSWERED)


def abstain_threshold(confidence_N: Floats, correct_N: Hits, accuracy: float) -> float:
    """The smallest threshold at which the answered images, at least `FEWEST_ANSWERED`, are right on
    a share of *accuracy*; 0 to 1.

    Rounded down to six decimals, so that the image it was found at is still answered. Raises
    `ExportError` with the best that can be had.
    """
    points = telling(_all_points(confidence_N, correct_N), count=len(confidence_N))
    if not points:
        raise ExportError(
            f"abstain gate: {len(confidence_N)} validation images are too few to choose a"
            f" threshold, {FEWEST_ANSWERED} are needed; leave out --abstain-accuracy, or add images"
        )
    found = point_reaching(points, accuracy, count=len(confidence_N))
    if found is None:
        best = max(points, key=lambda point: point.accuracy)
        raise ExportError(
            f"abstain gate: no threshold reaches an accuracy of {accuracy:.2%} on the"
            f" {len(confidence_N)} validation images; the best is {best.accuracy:.2%}, answering"
            f" {best.answered:.0%} of them at {best.threshold:.3f}; lower --abstain-accuracy, or"
            " leave it out"
        )
    # All are answered: then there is nothing to abstain from.
    return 0.0 if found.answered == 1.0 else math.floor(found.threshold * 1e6) / 1e6


def _all_points(confidence_N: Floats, correct_N: Hits) -> tuple[AbstentionPoint, ...]:
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N, hits_N = confidence_N[order], np.cumsum(correct_N[order])
    # Images of equal confidence are answered together: a point stands at the last of them.
    last = [*np.flatnonzero(np.diff(sorted_N)), len(order) - 1]
    return tuple(
        AbstentionPoint(float(sorted_N[i]), (int(i) + 1) / len(order), float(hits_N[i] / (i + 1)))
        for i in last
    )
