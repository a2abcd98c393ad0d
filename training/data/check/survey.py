"""A survey: the whole check of one source, and its results as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from training.data.check.findings import LEVELS, Finding, examine
from training.data.check.inspection import Seen, inspect_all
from training.data.source import AS_USUAL, SourceOptions, list_source
from training.data.sources.listing import Listing


@dataclass(frozen=True)
class Survey:
    """What a source holds and what is wrong with it."""

    listing: Listing
    seen: tuple[Seen, ...]
    findings: tuple[Finding, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> images, readable or not."""
        counted = Counter((image.split, image.example.label) for image in self.seen)
        return {
            split: {label: counted[split, index] for index, label in enumerate(self.listing.labels)}
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


def as_json(result: Survey, *, status: int) -> dict[str, Any]:
    """The survey with every image of every finding."""
    return {
        "source": result.listing.source,
        "status": status,
        "images": len(result.seen),
        "splits": result.counts(),
        "levels": result.levels(),
        "findings": [_finding(result, finding) for finding in result.findings],
    }


def _finding(result: Survey, finding: Finding) -> dict[str, Any]:
    notes = finding.notes or ("",) * len(finding.groups)
    return {
        "level": finding.level,
        "check": finding.check,
        "message": finding.message,
        "advice": finding.advice,
        "groups": [
            {"note": note, "images": [_image(result, place) for place in group]}
            for group, note in zip(finding.groups, notes, strict=True)
        ],
        "files": list(finding.files),
    }


def _image(result: Survey, place: int) -> dict[str, str]:
    image = result.seen[place]
    return {
        "name": image.example.name,
        "split": image.split,
        "label": result.listing.labels[image.example.label],
        "sha256": image.sha256,
    }
