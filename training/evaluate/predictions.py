"""What a package says about labelled images, and the figures that the manifest takes from it.

Letters used in shapes: N images, K classes, D embedding features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.package.manifest import DriftReference, Evaluation, Interval, PreprocessSpec
from models.runtime.drift_signals import brightness, reference, sharpness
from training.data.predict import Outputs, Runner, predict
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.evaluate.metrics import Floats, Labels, expected_calibration_error, top_k_hits, wilson


@dataclass(frozen=True)
class Predictions:
    """A model's outputs for a sequence of examples, in order, and what their images looked like."""

    examples: Sequence[Example]
    labels_N: Labels
    logits_NK: Floats
    probabilities_NK: Floats
    embedding_ND: Floats | None
    brightness_N: list[float]
    sharpness_N: list[float]
    model_s: float
    """Seconds spent in the model for all images, without decoding."""

    @property
    def correct_N(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the true one."""
        return np.asarray(self.probabilities_NK.argmax(axis=1) == self.labels_N)

    def drift_reference(self) -> DriftReference:
        """What live traffic is to be compared with."""
        return reference(
            probabilities_NK=self.probabilities_NK,
            embedding_ND=self.embedding_ND,
            brightness_N=self.brightness_N,
            sharpness_N=self.sharpness_N,
        )


def predictions(
    run: Runner,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    title: str = "evaluate",
    split: str = "",
    quarantine: Quarantine | None = None,
    embedding: bool = True,
) -> Predictions:
    """What *run* says to every example. Raises `DataError` if there are none.

    Without *embedding* the network has no such output. With a *quarantine*, the images of *split*
    that cannot be read go there; without, they raise.
    """
    model_s = 0.0

    brightness_N: list[float] = []
    sharpness_N: list[float] = []

    def watched(pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        nonlocal model_s
        started = time.perf_counter()
        found = run(pixels_NHWC, outputs)
        model_s += time.perf_counter() - started
        brightness_N.extend(map(brightness, pixels_NHWC))
        sharpness_N.extend(map(sharpness, pixels_NHWC))
        return found

    outputs = ("logits", "probabilities") + ("embedding",) * embedding
    places, found = predict(
        watched, examples, spec, outputs, title=title, split=split, quarantine=quarantine
    )
    if not places:
        raise DataError(f"{title}: no images to judge on")
    read = [examples[place] for place in places]
    labels_N = np.array([example.label for example in read], dtype=np.int64)
    return Predictions(
        read,
        labels_N,
        found["logits"],
        found["probabilities"],
        found.get("embedding"),
        brightness_N,
        sharpness_N,
        model_s,
    )


def evaluation(found: Predictions, *, source: str, split: str, provider: str) -> Evaluation:
    """The figures that stand in the manifest."""
    count, classes = found.probabilities_NK.shape
    metrics = {"top1": wilson(int(found.correct_N.sum()), count)}
    if classes > 5:
        metrics["top5"] = wilson(top_k_hits(found.probabilities_NK, found.labels_N, 5), count)
    metrics["ece"] = bootstrap_ece(found)
    return Evaluation(data=source, split=split, count=count, metrics=metrics, provider=provider)


def bootstrap_ece(found: Predictions, *, resamples: int = 200) -> Interval:
    """The expected calibration error with a seeded 95 % basic bootstrap interval.

    The estimate is biased upwards, and on a resample once more: percentiles alone nearly always
    miss a small true error. The basic interval takes the bias off again. Source: Davison and
    Hinkley 1997, section 5.2.1.
    """
    random, count = np.random.default_rng(0), len(found.labels_N)
    draws = [random.integers(0, count, count) for _ in range(resamples)]
    errors = [
        expected_calibration_error(found.probabilities_NK[draw], found.labels_N[draw])
        for draw in draws
    ]
    value = expected_calibration_error(found.probabilities_NK, found.labels_N)
    low, high = 2.0 * value - np.percentile(errors, [97.5, 2.5])
    # An error is not negative, and a reader expects the value between its bounds.
    return Interval(
        value=value,
        low=min(max(0.0, float(low)), value),
        high=max(float(high), value),
        method=f"basic bootstrap, {resamples} resamples",
    )
