"""The evaluation report: one self-contained HTML file, and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from models.package.manifest import Evaluation
from training.evaluate.latency import Latency
from training.evaluate.predictions import Predictions
from training.evaluate.report.figures import Subject, figures
from training.evaluate.report.page import page


def write_report(
    folder: Path,
    subject: Subject,
    *,
    found: Predictions,
    evaluation: Evaluation,
    latency: Latency,
    beside: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write `report.html` and `report.json`, with what is *beside* the figures, into *folder*.

    Raises `DataError` if an image can no longer be read.
    """
    shown = figures(subject, found=found, evaluation=evaluation, latency=latency)
    text = json.dumps(shown.as_json() | dict(beside), indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(shown), encoding="utf-8")
