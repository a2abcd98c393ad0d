"""The evaluation report: one HTML file that loads nothing, and the same figures as JSON.

The text of the page is in `report.template.html`. jinja2 escapes all names.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from models.package.manifest import Evaluation
from models.pixels.preprocess import to_pixels
from training.evaluate.latency import Latency
from training.evaluate.predictions import Predictions
from training.evaluate.report.charts import abstention_chart, reliability_chart
from training.evaluate.report.curves import accuracy_chart, loss_chart
from training.evaluate.report.figures import Figures, Subject, figures
from training.evaluate.report.history import History

MAX_CONFUSION_CLASSES = 30
WORST_CLASSES = 20
"""Rows of the class table that are always open; with more classes the others unfold."""
WORST_PAIRS = 8
"""Confused classes above the confusion matrix."""
THUMBNAIL_PX = 160
NAMES = {
    "top1": "right at the first guess",
    "top5": "right within five guesses",
    "ece": "expected calibration error",
}
PROPERTIES = {
    "size": "image size",
    "brightness": "brightness",
    "sharpness": "sharpness",
    "exif": "EXIF rotation",
}
ALIKE = {
    "size": "all images have the same size",
    "brightness": "all are equally bright",
    "sharpness": "all are equally sharp",
    "exif": "all are alike in EXIF rotation",
}


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


def page(found: Figures) -> str:
    """The page with *found*. Raises `DataError` if an image of a mistake can no longer be read."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["as"] = format
    subject, confusion_KK = found.subject, found.confusion_KK
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    pictures = [_png(to_pixels(example.read(), subject.spec)) for example in found.mistaken]
    return environment.get_template("report.template.html").render(
        found=found,
        names=NAMES,
        properties=PROPERTIES,
        not_compared="; ".join(ALIKE[by] for by in found.slices.alike),
        max_confusion_classes=MAX_CONFUSION_CLASSES,
        worst_classes=WORST_CLASSES,
        worst_pairs=WORST_PAIRS,
        reliability=Markup(reliability_chart(found.served, found.raw)),  # noqa: S704 - numbers alone
        abstention=Markup(  # noqa: S704 - numbers alone
            abstention_chart(found.curve, threshold=subject.abstain_threshold)
        ),
        # Worst F1 first; of equals the one with more images.
        classes=sorted(found.classes, key=lambda score: (score.f1, -score.support)),
        confusion=zip(subject.labels, confusion_KK.tolist(), share_KK.tolist(), strict=True),
        mistakes=zip(found.mistakes, pictures, strict=True),
        training=_training(subject.history),
    )


def _training(history: History | None) -> dict[str, object] | None:
    """What the page shows of *history*."""
    if history is None or not history.epochs:
        return None
    return {
        "loss": Markup(loss_chart(history)),  # noqa: S704 - numbers alone
        "accuracy": Markup(accuracy_chart(history)),  # noqa: S704 - numbers alone
        "validation": any(epoch.val_loss is not None for epoch in history.epochs),
        "augmented": [_data_url(image, "JPEG") for image in history.augmented],
    }


def _png(pixels_HWC: NDArray[np.uint8]) -> str:
    """A small PNG of what the model saw, inside the page."""
    return _data_url(Image.fromarray(pixels_HWC), "PNG")


def _data_url(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    small = image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(stream, kind)
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
