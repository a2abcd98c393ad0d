"""The report as one page of HTML that loads nothing; its text is in `report.template.html`.

Whatever comes from outside, names above all, is escaped by jinja2.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from training.data.source import Example
from training.evaluate.report.charts import abstention_chart, reliability_chart
from training.evaluate.report.figures import Figures

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
    pictures = [_data_url(example, subject.spec) for example in found.mistaken]
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
    )


def _data_url(example: Example, spec: PreprocessSpec) -> str:
    """A small PNG of what the model saw, inside the page."""
    stream = io.BytesIO()
    image = Image.fromarray(to_pixels(example.read(), spec))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
