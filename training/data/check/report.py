"""The page of `loupe data check`: one HTML file with thumbnails, copies side by side."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment

from models.errors import DataError, RequestError
from models.pixels.preprocess import decode
from training.data.check.inspection import SPEC, Seen
from training.data.check.survey import Survey
from training.data.layout.names import number

TEMPLATE = Path(__file__).with_name("report.template.html")
MAX_GROUPS = 12
MAX_IMAGES = 6
MAX_FILES = 20
THUMBNAIL_PX = 200
WORDS = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}


def page(result: Survey) -> str:
    """The report of *result*."""
    counts = result.counts()
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        result=result,
        counts=counts,
        most=max((count for counted in counts.values() for count in counted.values()), default=1),
        images=number(result.seen, "image"),
        classes=number(result.listing.labels, "class", "classes"),
        words=WORDS,
        max_groups=MAX_GROUPS,
        max_images=MAX_IMAGES,
        max_files=MAX_FILES,
        thumbnail=_thumbnail,
    )


def _thumbnail(image: Seen) -> str:
    """A small JPEG in base64; empty if the image cannot be shown.

    It is decoded again: keeping one of every image would take more memory than the few that are
    shown take time.
    """
    stream = io.BytesIO()
    try:
        small = decode(image.example.read(), SPEC)
    except (DataError, RequestError):
        return ""
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
