"""The evaluation report: one self-contained HTML file that reads well on a phone, and the same figures as JSON."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import asdict
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.manifest import Evaluation, Parity, PreprocessSpec
from models.preprocess import to_pixels
from training.evaluate import Answers
from training.metrics import ClassScore, class_scores, confusion

TEMPLATE = Template((Path(__file__).with_name("report.template.html")).read_text(encoding="utf-8"))
MAX_MISTAKES = 12
MAX_CONFUSION_CLASSES = 30
THUMBNAIL_PX = 160
NAMES = {"top1": "right at the first guess", "top5": "right within five guesses", "ece": "expected calibration error"}


def write_report(
    folder: Path, *, title: str, labels: tuple[str, ...], spec: PreprocessSpec, answers: Answers, evaluation: Evaluation, parity: Parity
) -> None:
    """Write `report.html` and `report.json` into *folder*."""
    confusion_KK = confusion(answers.probabilities_NK, answers.labels_N)
    scores = class_scores(confusion_KK, labels)
    data = {
        "title": title,
        "evaluation": evaluation.model_dump(mode="json"),
        "parity": parity.model_dump(mode="json"),
        "model_ms_per_image": 1000.0 * answers.model_s / len(answers.labels_N),
        "classes": [asdict(score) for score in scores],
        "labels": labels,
        "confusion": confusion_KK.tolist(),
        "mistakes": [_mistake(answers, labels, index) for index in _worst(answers)],
    }
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    page = TEMPLATE.substitute(
        title=html.escape(title),
        summary=_summary(evaluation, answers),
        metrics=_metrics(evaluation),
        parity=_parity(parity),
        classes="".join(_class_row(score) for score in scores),
        confusion=_confusion(confusion_KK, labels),
        mistakes=_mistakes(answers, labels, spec) or "<p>None: every image was classified right.</p>",
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _summary(evaluation: Evaluation, answers: Answers) -> str:
    milliseconds = 1000.0 * answers.model_s / len(answers.labels_N)
    return (
        f"The exported package itself, with the preprocessing that serves, on {evaluation.count:,} {html.escape(evaluation.split)} images of "
        f"{html.escape(evaluation.data)} ({evaluation.provider}, {milliseconds:.1f} ms of model time an image)."
    )


def _metrics(evaluation: Evaluation) -> str:
    cards = []
    for name, interval in evaluation.metrics.items():
        bounds = f"{interval.low:.1%} to {interval.high:.1%}"
        cards.append(
            f"<div class=card><b>{interval.value:.1%}</b><span>{NAMES[name]}</span><small>{interval.confidence:.0%} interval {bounds}</small></div>"
        )
    return "".join(cards)


def _parity(parity: Parity) -> str:
    return (
        f"<p>Export: the largest difference of a probability between torch and ONNX Runtime is {parity.max_probability_difference:.1e} "
        f"(allowed {parity.tolerance:.0e}) over {parity.images} images, at batch sizes {', '.join(map(str, parity.batch_sizes))}.</p>"
    )


def _class_row(score: ClassScore) -> str:
    numbers = "".join(f"<td>{value:.1%}</td>" for value in (score.precision, score.recall, score.f1))
    return f"<tr><th scope=row>{html.escape(score.label)}</th><td>{score.support}</td>{numbers}</tr>"


def _confusion(confusion_KK: NDArray[np.int64], labels: tuple[str, ...]) -> str:
    if len(labels) > MAX_CONFUSION_CLASSES:
        return _confused_pairs(confusion_KK, labels)
    head = "".join(f"<th scope=col>{html.escape(label)}</th>" for label in labels)
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    rows = []
    for k, label in enumerate(labels):
        cells = "".join(
            f'<td class="{"hit" if k == j else "miss"}" style="--share:{share_KK[k, j]:.3f}">{count or ""}</td>'
            for j, count in enumerate(confusion_KK[k])
        )
        rows.append(f"<tr><th scope=row>{html.escape(label)}</th>{cells}</tr>")
    return (
        f"<div class=scroll><table class=confusion><tr><td></td>{head}</tr>{''.join(rows)}</table></div><p>Rows: the truth. Columns: the answer.</p>"
    )


def _confused_pairs(confusion_KK: NDArray[np.int64], labels: tuple[str, ...]) -> str:
    """With many classes the matrix is unreadable: its largest entries off the diagonal instead."""
    off = confusion_KK.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:20]
    pairs = [(labels[cell // len(labels)], labels[cell % len(labels)], int(off.flat[cell])) for cell in order if off.flat[cell]]
    rows = "".join(f"<tr><th scope=row>{html.escape(truth)}</th><td>{html.escape(said)}</td><td>{count}</td></tr>" for truth, said, count in pairs)
    return f"<table><tr><th>truth</th><th>answer</th><th>images</th></tr>{rows}</table>"


def _worst(answers: Answers) -> list[int]:
    """Indices of the mistakes, most confident first."""
    confidence_N = answers.probabilities_NK.max(axis=1)
    wrong = np.flatnonzero(~answers.correct_N)
    return [int(index) for index in wrong[np.argsort(-confidence_N[wrong], kind="stable")][:MAX_MISTAKES]]


def _mistake(answers: Answers, labels: tuple[str, ...], index: int) -> dict[str, object]:
    said = int(answers.probabilities_NK[index].argmax())
    return {
        "image": answers.examples[index].name,
        "truth": labels[answers.labels_N[index]],
        "answer": labels[said],
        "probability": float(answers.probabilities_NK[index, said]),
    }


def _mistakes(answers: Answers, labels: tuple[str, ...], spec: PreprocessSpec) -> str:
    figures = []
    for index in _worst(answers):
        fact = _mistake(answers, labels, index)
        name = html.escape(str(fact["image"]))
        caption = f"<b>{html.escape(str(fact['answer']))}</b> {fact['probability']:.0%}<br>truth: {html.escape(str(fact['truth']))}"
        figures.append(
            f'<figure><img src="{_data_url(answers, index, spec)}" alt="{name}" loading=lazy>'
            f"<figcaption>{caption}<br><small>{name}</small></figcaption></figure>"
        )
    return "".join(figures)


def _data_url(answers: Answers, index: int, spec: PreprocessSpec) -> str:
    """A small PNG of what the model saw, inside the page."""
    pixels_HWC = to_pixels(answers.examples[index].read(), spec)
    stream = io.BytesIO()
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
