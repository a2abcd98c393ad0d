"""All that a report shows, as values: worked out once, written as JSON, drawn as a page.
docs/evaluation.md explains the JSON's keys.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from models.package.manifest import Evaluation, Parity, PreprocessSpec
from training.evaluate.calibration import (
    AbstentionPoint,
    Reliability,
    abstention_curve,
    point_reaching,
    reliability,
    softmax,
)
from training.evaluate.latency import Latency
from training.evaluate.metrics import ClassScore, class_scores, confusion
from training.evaluate.predict import Answers
from training.evaluate.slices import Slices, sliced
from training.export.int8.search import Found

SCHEMA = 1
"""Of `report.json`. Keys may be added; a key that changes its meaning or goes away raises it."""
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


@dataclass(frozen=True)
class Confused:
    """How many images of class *truth* are taken for *answer*."""

    truth: str
    answer: str
    images: int


@dataclass(frozen=True)
class Mistake:
    """One image that is answered wrong."""

    index: int
    """Among the images of the evaluation."""
    image: str
    truth: str
    answer: str
    probability: float
    """That the model gives to its wrong answer."""


@dataclass(frozen=True)
class Reachable:
    """What abstaining costs for an accuracy of *accuracy* among the answered; None where no
    threshold that leaves ten images answered reaches it.
    """

    accuracy: float
    point: AbstentionPoint | None


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

    def as_json(self) -> dict[str, object]:
        """The content of `report.json`."""
        return {
            "schema": SCHEMA,
            "title": self.subject.title,
            "labels": self.subject.labels,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "parity": self.subject.parity.model_dump(mode="json"),
            "quantisation": None
            if self.subject.quantisation is None
            else self.subject.quantisation.as_json(),
            "temperature": self.subject.temperature,
            "abstain_threshold": self.subject.abstain_threshold,
            "model_ms_per_image": self.model_ms_per_image,
            "classes": _plain(self.classes),
            "confusion": self.confusion_KK.tolist(),
            "confused": _plain(self.confused),
            "calibration": {"before": _plain(self.raw), "after": _plain(self.served)},
            "abstention": {"curve": _plain(self.curve), "reachable": _plain(self.reachable)},
            "slices": {
                "looked_at": len(self.slices.slices),
                "weak_by_chance": self.slices.by_chance,
                "alike": self.slices.alike,
                "slices": _plain(self.slices.slices),
            },
            "latency": _plain(self.latency),
            "mistakes": [
                {key: value for key, value in _record(mistake).items() if key != "index"}
                for mistake in self.mistakes
            ],
        }


def figures(
    subject: Subject, *, answers: Answers, evaluation: Evaluation, latency: Latency
) -> Figures:
    """Every figure about *answers*. Raises `DataError` if an image went away since."""
    confusion_KK = confusion(answers.probabilities_NK, answers.labels_N)
    curve = abstention_curve(answers.probabilities_NK.max(axis=1), answers.correct_N)
    count, overall = len(answers.labels_N), evaluation.metrics["top1"].value
    return Figures(
        subject=subject,
        evaluation=evaluation,
        model_ms_per_image=1000.0 * answers.model_s / count,
        classes=tuple(class_scores(confusion_KK, subject.labels)),
        confusion_KK=confusion_KK,
        confused=_confused(confusion_KK, subject.labels),
        raw=reliability(softmax(answers.logits_NK), answers.labels_N, temperature=1.0),
        served=reliability(
            answers.probabilities_NK, answers.labels_N, temperature=subject.temperature
        ),
        curve=curve,
        reachable=tuple(
            Reachable(accuracy, point_reaching(curve, accuracy, count=count))
            for accuracy in ACCURACIES
            if accuracy > overall
        ),
        slices=sliced(answers),
        latency=latency,
        mistakes=_mistakes(answers, subject.labels),
    )


def _confused(confusion_KK: NDArray[np.int64], labels: tuple[str, ...]) -> tuple[Confused, ...]:
    off_KK = confusion_KK.copy()
    np.fill_diagonal(off_KK, 0)
    order = np.argsort(-off_KK, axis=None, kind="stable")[:MAX_CONFUSED]
    cells = [(*divmod(int(cell), len(labels)), int(off_KK.flat[cell])) for cell in order]
    return tuple(
        Confused(labels[truth], labels[said], images) for truth, said, images in cells if images
    )


def _mistakes(answers: Answers, labels: tuple[str, ...]) -> tuple[Mistake, ...]:
    confidence_N, said_N = (
        answers.probabilities_NK.max(axis=1),
        answers.probabilities_NK.argmax(axis=1),
    )
    wrong = np.flatnonzero(~answers.correct_N)
    chosen = [
        int(index)
        for index in wrong[np.argsort(-confidence_N[wrong], kind="stable")][:MAX_MISTAKES]
    ]
    return tuple(
        Mistake(
            i,
            answers.examples[i].name,
            labels[answers.labels_N[i]],
            labels[said_N[i]],
            float(confidence_N[i]),
        )
        for i in chosen
    )


def _plain(value: object) -> object:
    """Dataclasses as dicts, tuples as lists, the manifest's records as they are written there."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _record(value) if hasattr(value, "__dataclass_fields__") else value


def _record(value: object) -> dict[str, object]:
    return {key: _plain(inner) for key, inner in vars(value).items()}
