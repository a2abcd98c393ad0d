"""How good a set of answers is. Letters used in shapes: N images, K classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, log_softmax

from models.package.manifest import Interval

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
ECE_BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """One class's row of the report."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


def wilson(successes: int, count: int) -> Interval:
    """*successes* of *count* with the 95 % Wilson score interval.

    Source: Wilson 1927; it holds near 0 and 1, where the normal one fails.
    """
    share, z2 = successes / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = Z_95 / (1 + z2 / count) * spread
    # At 0 and at all of *count* one bound is the share itself, and rounding must not put it on the
    # wrong side.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Interval(value=share, low=low, high=high, method="wilson")


def binomial_at_most(most: int, count: int, share: float) -> float:
    """Probability of *most* successes or fewer in *count* trials of probability *share*.

    0 if *most* is negative.
    """
    return float(bdtr(most, count, share)) if most >= 0 else 0.0


def top_k_hits(probabilities_NK: Floats, labels_N: Labels, k: int) -> int:
    """Images whose true class is among the *k* likeliest."""
    best_Nk = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :k]
    return int((best_Nk == labels_N[:, None]).any(axis=1).sum())


def confusion(probabilities_NK: Floats, labels_N: Labels) -> NDArray[np.int64]:
    """[K,K] counts: true class by row, answered class by column."""
    classes = probabilities_NK.shape[1]
    cells = labels_N * classes + probabilities_NK.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_scores(confusion_KK: NDArray[np.int64], labels: tuple[str, ...]) -> list[ClassScore]:
    """Precision, recall and F1 of each class; 0 where a ratio has no denominator."""
    hits = confusion_KK.diagonal().astype(float)
    answered, support = confusion_KK.sum(axis=0), confusion_KK.sum(axis=1)
    precision = np.divide(hits, answered, out=np.zeros_like(hits), where=answered > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
    return [
        ClassScore(label, int(support[k]), float(precision[k]), float(recall[k]), float(f1[k]))
        for k, label in enumerate(labels)
    ]


def expected_calibration_error(
    probabilities_NK: Floats, labels_N: Labels, bins: int = ECE_BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their images.

    Source: Guo et al. 2017, eq. 3.
    """
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = (abs(correct_N[bin_N == b].sum() - confidence_N[bin_N == b].sum()) for b in range(bins))
    return float(sum(gaps) / len(labels_N))


def fit_temperature(logits_NK: Floats, labels_N: Labels) -> float:
    """The temperature of 0.05 to 20 that minimises the negative log-likelihood.

    Source: Guo et al. 2017, section 4.2.

    The likelihood is convex in 1/T, so a golden-section search over 1/T finds the minimum. There is
    none where every answer is right, since more confidence is then always better. A few images that
    happen to be right say little, so the temperature is 1.
    """
    if (logits_NK.argmax(axis=1) == labels_N).all():
        return 1.0
    rows_N = np.arange(len(labels_N))

    def loss(scale: float) -> float:
        scaled_NK = (logits_NK * scale).astype(np.float64)
        return float(-log_softmax(scaled_NK, axis=1)[rows_N, labels_N].mean())

    low, high = 1.0 / 20.0, 1.0 / 0.05
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2.0 / (low + high)
