"""The whole check of one source, and its results as JSON and as a page with thumbnails."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from models.errors import DataError, RequestError
from models.pixels.preprocess import decode
from training.data.check import duplicates, findings
from training.data.check.findings import LEVELS, Finding
from training.data.check.inspection import SPEC, Inspected, inspect_all
from training.data.layout.names import number
from training.data.source import AS_USUAL, SourceOptions, list_source
from training.data.sources.listing import Listing

TEMPLATE = Path(__file__).with_name("survey.template.html")
MAX_GROUPS = 12
MAX_IMAGES = 6
MAX_FILES = 20
THUMBNAIL_PX = 200
WORDS = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}


@dataclass(frozen=True)
class Survey:
    """What a source holds and what is wrong with it."""

    listing: Listing
    seen: tuple[Inspected, ...]
    findings: tuple[Finding, ...]

    def label(self, image: Inspected) -> str:
        """The class of *image*."""
        return self.listing.labels[image.example.label]

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> images, readable or not."""
        counted = Counter((image.split, self.label(image)) for image in self.seen)
        return {
            split: {label: counted[split, label] for label in self.listing.labels}
            for split in self.listing.splits
        }

    def levels(self) -> dict[str, int]:
        """Level -> number of findings."""
        counted = Counter(finding.level for finding in self.findings)
        return {level: counted[level] for level in LEVELS}


def survey(source: str, options: SourceOptions = AS_USUAL) -> Survey:
    """The check of *source*.

    Raises `DataError` if it cannot be found or listed; whatever else is wrong is a finding.
    """
    listing = list_source(source, options)
    seen = inspect_all(
        [(split, example) for split, examples in listing.splits.items() for example in examples]
    )
    return Survey(listing, tuple(seen), tuple(examine(listing, seen)))


def examine(listing: Listing, seen: Sequence[Inspected]) -> list[Finding]:
    """All findings, errors first, in the order of the checks."""
    found = [
        *findings.layout(listing),
        *findings.classes(listing, seen),
        *findings.faults(seen),
        *duplicates.exact(seen),
        *duplicates.near(listing, seen),
        *findings.extensions(seen),
        *findings.unused(listing),
        *findings.pictures(seen),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def as_json(result: Survey, *, status: int) -> dict[str, Any]:
    """The survey with every image of every finding."""
    images = [
        {
            "name": image.example.name,
            "split": image.split,
            "label": result.label(image),
            "sha256": image.sha256,
        }
        for image in result.seen
    ]
    return {
        "source": result.listing.source,
        "status": status,
        "images": len(result.seen),
        "splits": result.counts(),
        "levels": result.levels(),
        "findings": [
            {
                "level": finding.level,
                "check": finding.check,
                "message": finding.message,
                "advice": finding.advice,
                "groups": [
                    {"note": note, "images": [images[place] for place in group]}
                    for group, note in finding.noted
                ],
                "files": list(finding.files),
            }
            for finding in result.findings
        ],
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


def _thumbnail(image: Inspected) -> str:
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
