"""The whole check of one source, and its results as JSON."""

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

    def label(self, image: Seen) -> str:
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
