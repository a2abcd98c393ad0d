"""All that a report shows, as values: computed once, written as JSON, drawn as a page.

docs/evaluation.md explains the JSON's keys. Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from scipy.special import softmax

from models.package.manifest import Evaluation, Parity, PreprocessSpec
from training.data.source import Example
from training.evaluate.calibration import (
    AbstentionPoint,
    Reliability,
    abstention_curve,
    point_reaching,
    reliability,
    thinned,
)
from training.evaluate.latency import Latency
from training.evaluate.metrics import ClassScore, class_scores, confusion
from training.evaluate.predictions import Predictions
from training.evaluate.report.history import History
from training.evaluate.slices import Slices, sliced
from training.export.int8.search import Found

SCHEMA = 1
"""Of `report.json`. Keys may be added. A key that changes its meaning or goes away raises it."""
MAX_MISTAKES = 12
MAX_CONFUSED = 20
ACCURACIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""For which the report says how many images could be answered."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that a report is about."""

    title: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    parity: Parity
    temperature: float
    """Already in the probabilities."""
    abstain_threshold: float
    quantisation: Found | None = None
    """The search for int8, if there was one."""
    history: History | None = None
    """How it was trained. None where only the package is known."""


@dataclass(frozen=True)
class Confused:
    """How many images of class *truth* are taken for *answer*."""

    truth: str
    answer: str
    images: int


@dataclass(frozen=True)
class Mistake:
    """One image that is answered wrong."""

    image: str
    truth: str
    answer: str
    probability: float
    """Probability that the model gives to its wrong answer."""


@dataclass(frozen=True)
class Reachable:
    """What abstaining costs for an accuracy of `accuracy` among the answered images."""

    accuracy: float
    point: AbstentionPoint | None
    """None if no threshold that leaves ten images answered reaches it."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything in a report but the pictures."""

    subject: Subject
    evaluation: Evaluation
    model_ms_per_image: float
    """In batches, as the evaluation ran."""
    classes: tuple[ClassScore, ...]
    """In label order."""
    confusion_KK: NDArray[np.int64]
    confused: tuple[Confused, ...]
    """Most images first."""
    raw: Reliability
    """Before the temperature."""
    served: Reliability
    curve: tuple[AbstentionPoint, ...]
    reachable: tuple[Reachable, ...]
    slices: Slices
    latency: Latency
    mistakes: tuple[Mistake, ...]
    """Most confident first."""
    mistaken: tuple[Example, ...]
    """The images of `mistakes`."""

    def as_json(self) -> dict[str, object]:
        """The content of `report.json`."""
        subject, slices = self.subject, self.slices
        found = subject.quantisation
        content = {
            "schema": SCHEMA,
            "title": subject.title,
            "labels": subject.labels,
            "evaluation": self.evaluation,
            "parity": subject.parity,
            "quantisation": None if found is None else found.as_json(),
            "training": None if subject.history is None else subject.history.as_json(),
            "temperature": subject.temperature,
            "abstain_threshold": subject.abstain_threshold,
            "model_ms_per_image": self.model_ms_per_image,
            "classes": self.classes,
            "confusion": self.confusion_KK.tolist(),
            "confused": self.confused,
            "calibration": {"before": self.raw, "after": self.served},
            "abstention": {"curve": self.curve, "reachable": self.reachable},
            "slices": {
                "looked_at": len(slices.slices),
                "weak_by_chance": slices.by_chance,
                "alike": slices.alike,
                "slices": slices.slices,
            },
            "latency": self.latency,
            "mistakes": self.mistakes,
        }
        written: dict[str, object] = to_jsonable_python(content)
        return written


def figures(
    subject: Subject, *, found: Predictions, evaluation: Evaluation, latency: Latency
) -> Figures:
    """Every figure about *found*. Raises `DataError` if an image can no longer be read."""
    labels, labels_N, probabilities_NK = subject.labels, found.labels_N, found.probabilities_NK
    confidence_N, answer_N = probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1)
    confusion_KK = confusion(probabilities_NK, labels_N)
    curve = thinned(abstention_curve(confidence_N, found.correct_N))
    wrong = np.flatnonzero(~found.correct_N)
    worst = wrong[np.argsort(-confidence_N[wrong], kind="stable")][:MAX_MISTAKES]
    return Figures(
        subject=subject,
        evaluation=evaluation,
        model_ms_per_image=1000.0 * found.model_s / len(labels_N),
        classes=tuple(class_scores(confusion_KK, labels)),
        confusion_KK=confusion_KK,
        confused=_confused(confusion_KK, labels),
        raw=reliability(softmax(found.logits_NK, axis=1), labels_N, temperature=1.0),
        served=reliability(probabilities_NK, labels_N, temperature=subject.temperature),
        curve=curve,
        reachable=tuple(
            Reachable(accuracy, point_reaching(curve, accuracy, count=len(labels_N)))
            for accuracy in ACCURACIES
            if accuracy > evaluation.metrics["top1"].value
        ),
        slices=sliced(found),
        latency=latency,
        mistakes=tuple(
            Mistake(
                found.examples[i].name,
                labels[labels_N[i]],
                labels[answer_N[i]],
                float(confidence_N[i]),
            )
            for i in worst
        ),
        mistaken=tuple(found.examples[i] for i in worst),
    )


def _confused(confusion_KK: NDArray[np.int64], labels: tuple[str, ...]) -> tuple[Confused, ...]:
    off_KK = confusion_KK.copy()
    np.fill_diagonal(off_KK, 0)
    order = np.argsort(-off_KK, axis=None, kind="stable")[:MAX_CONFUSED]
    cells = [(*divmod(int(cell), len(labels)), int(off_KK.flat[cell])) for cell in order]
    return tuple(
        Confused(labels[truth], labels[answer], images) for truth, answer, images in cells if images
    )
