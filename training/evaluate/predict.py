"""Scores a served model: the ONNX session itself, fed by the preprocessing that the service uses.

Letters used in shapes: N images, K classes, D embedding features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.package.manifest import DriftReference, Evaluation, Interval, PreprocessSpec
from models.runtime.drift_signals import brightness, reference, sharpness
from training.data.loader import readable_batches
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.evaluate.metrics import Floats, Labels, expected_calibration_error, top_k_hits, wilson
from training.progress import steps

BATCH = 32
OUTPUTS = ("logits", "probabilities", "embedding")


class Runs(Protocol):
    """What `models.runtime.session.Model` does: the graph's outputs for `uint8 [N,H,W,3]`."""

    def run(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, Floats]:
        """The *outputs* by name."""


@dataclass(frozen=True)
class Answers:
    """A model's outputs for a sequence of examples, in order, and what their images looked like."""

    examples: Sequence[Example]
    labels_N: Labels
    logits_NK: Floats
    probabilities_NK: Floats
    embedding_ND: Floats
    brightness_N: list[float]
    sharpness_N: list[float]
    model_s: float
    """Seconds spent in the model for all images, decoding aside."""

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


def answer(
    model: Runs,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    title: str = "evaluate",
    split: str = "",
    quarantine: Quarantine | None = None,
) -> Answers:
    """What *model* says to every example. Raises `DataError` if there are none.

    With a *quarantine*, the images of *split* that cannot be read go there; without, they raise.
    """
    answered: list[Example] = []
    collected: dict[str, list[Floats]] = {name: [] for name in OUTPUTS}
    bright: list[float] = []
    sharp: list[float] = []
    model_s = 0.0
    for pixels_NHWC, places in steps(
        readable_batches(examples, spec, BATCH, split=split, quarantine=quarantine),
        total=-(-len(examples) // BATCH),
        title=title,
        images=BATCH,
    ):
        answered += [examples[place] for place in places]
        started = time.perf_counter()
        outputs = model.run(pixels_NHWC, OUTPUTS)
        model_s += time.perf_counter() - started
        for name in OUTPUTS:
            collected[name].append(outputs[name])
        bright += [brightness(pixels_HWC) for pixels_HWC in pixels_NHWC]
        sharp += [sharpness(pixels_HWC) for pixels_HWC in pixels_NHWC]
    if not answered:
        raise DataError(f"{title}: no images to judge on")
    return Answers(
        examples=answered,
        labels_N=np.array([example.label for example in answered], dtype=np.int64),
        logits_NK=np.concatenate(collected["logits"]),
        probabilities_NK=np.concatenate(collected["probabilities"]),
        embedding_ND=np.concatenate(collected["embedding"]),
        brightness_N=bright,
        sharpness_N=sharp,
        model_s=model_s,
    )


def evaluation(answers: Answers, *, source: str, split: str, provider: str) -> Evaluation:
    """The figures that stand in the manifest."""
    count = len(answers.labels_N)
    classes = answers.probabilities_NK.shape[1]
    metrics = {"top1": wilson(int(answers.correct_N.sum()), count)}
    if classes > 5:
        metrics["top5"] = wilson(top_k_hits(answers.probabilities_NK, answers.labels_N, 5), count)
    metrics["ece"] = bootstrap_ece(answers)
    return Evaluation(data=source, split=split, count=count, metrics=metrics, provider=provider)


def bootstrap_ece(answers: Answers, *, resamples: int = 200) -> Interval:
    """The expected calibration error with a 95 % basic bootstrap interval; the resampling is
    seeded.

    The estimate is biased upwards, and on a resample once more: percentiles alone nearly always
    miss a small true error. The basic interval takes the bias off again. Source: Davison and
    Hinkley 1997, section 5.2.1.
    """
    random = np.random.default_rng(0)
    count = len(answers.labels_N)
    draws = [random.integers(0, count, count) for _ in range(resamples)]
    errors = [
        expected_calibration_error(answers.probabilities_NK[draw], answers.labels_N[draw])
        for draw in draws
    ]
    value = expected_calibration_error(answers.probabilities_NK, answers.labels_N)
    low, high = 2.0 * value - np.percentile(errors, [97.5, 2.5])
    # An error is not negative, and a reader expects the value between its bounds.
    return Interval(
        value=value,
        low=min(max(0.0, float(low)), value),
        high=max(float(high), value),
        method=f"basic bootstrap, {resamples} resamples",
    )
