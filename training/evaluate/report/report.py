"""The evaluation report: one self-contained HTML file that reads well on a phone, and the same
figures as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.package.manifest import Evaluation
from training.evaluate.latency import Latency
from training.evaluate.predict import Answers
from training.evaluate.report.figures import Subject, figures
from training.evaluate.report.page import page

NOTHING: Mapping[str, object] = {}


def write_report(
    folder: Path,
    subject: Subject,
    *,
    answers: Answers,
    evaluation: Evaluation,
    latency: Latency,
    beside: Mapping[str, object] = NOTHING,
) -> None:
    """Write `report.html` and `report.json`, with what is *beside* the figures, into *folder*.

    Raises `DataError` if an image went away since it was answered.
    """
    found = figures(subject, answers=answers, evaluation=evaluation, latency=latency)
    (folder / "report.json").write_text(
        json.dumps(found.as_json() | dict(beside), indent=1) + "\n", encoding="utf-8"
    )
    (folder / "report.html").write_text(page(found, answers.examples), encoding="utf-8")
