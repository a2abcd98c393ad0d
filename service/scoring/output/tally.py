"""Counts of a job, summed over its units in any order, and the summary made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from models.package.manifest import DriftReference, Manifest
from models.runtime.drift_signals import LEAST_IMAGES, SHIFTED, expected_counts, psi
from service.scoring.input.items import Scalar

TEXT = "text"
EXACT = 2**53
"""Whole numbers up to here are exact in float64."""

_KINDS = {type(None): "", bool: "bool", int: "int", float: "float", str: TEXT}
_WIDER = {frozenset(("int", "long")): "long", frozenset(("int", "float")): "float"}


@dataclass
class Tally:
    """Counts of some images, to be added up."""

    scored: int = 0
    abstained: int = 0
    classes: dict[int, int] = field(default_factory=dict)
    """Class index -> images whose likeliest class it is."""
    codes: dict[str, int] = field(default_factory=dict)
    """Fault code -> images."""
    signals: dict[str, list[int]] = field(default_factory=dict)
    """Drift signal -> counts between the edges of the manifest's reference."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Column of the input -> the narrowest of `bool`, `int`, `long`, `float`, `text` for it.

    Empty if it has no values yet.
    """

    @property
    def failed(self) -> int:
        """Images that could not be scored."""
        return sum(self.codes.values())

    @property
    def seen(self) -> int:
        """Images that are scored or failed."""
        return self.scored + self.failed

    def add(self, other: Tally) -> None:
        """Add the counts of *other*."""
        self.scored += other.scored
        self.abstained += other.abstained
        self.classes = Counter(self.classes) + Counter(other.classes)
        self.codes = Counter(self.codes) + Counter(other.codes)
        for signal, counts in other.signals.items():
            pairs = zip_longest(self.signals.get(signal, ()), counts, fillvalue=0)
            self.signals[signal] = [sum(pair) for pair in pairs]
        for column, kind in other.kinds.items():
            self.kinds[column] = wider(self.kinds.get(column, ""), kind)


def kinds_of(rows: Iterable[Iterable[tuple[str, Scalar]]]) -> dict[str, str]:
    """Column -> kind of *rows* of (column, value)."""
    kinds: dict[str, str] = {}
    for row in rows:
        for column, value in row:
            kinds[column] = wider(kinds.get(column, ""), _kind(value))
    return kinds


def _kind(value: Scalar) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT:
        # Larger whole numbers must not share a column with fractions: they would change.
        return "long"
    return _KINDS[type(value)]


def wider(one: str, other: str) -> str:
    """The narrowest kind that holds values of both."""
    kinds = frozenset((one, other)) - {""}
    return _WIDER.get(kinds, TEXT) if len(kinds) > 1 else one or other


def drift(tally: Tally, reference: DriftReference | None) -> dict[str, dict[str, Any]] | None:
    """Signal -> its `psi` against *reference*, the number of `images`, whether it `shifted`.

    None: the package has no images to compare with.
    """
    if reference is None:
        return None
    observed = {
        "predicted": [tally.classes.get(index, 0) for index in range(len(reference.predicted))],
        **tally.signals,
    }
    expected = expected_counts(reference)
    found = {}
    for signal, counts in observed.items():
        if sum(counts) and sum(expected[signal]):
            index, images = psi(expected[signal], counts), sum(counts)
            found[signal] = {
                "psi": round(index, 4),
                "images": images,
                "shifted": images >= LEAST_IMAGES and index > SHIFTED,
            }
    return found


def summarise(tally: Tally, manifest: Manifest, *, model: str) -> dict[str, Any]:
    """The summary of a job, as it is written."""
    likeliest = sorted(tally.classes.items(), key=lambda entry: (-entry[1], entry[0]))
    return {
        "model": model,
        "images": tally.seen,
        "scored": tally.scored,
        "abstained": tally.abstained,
        "failed": tally.failed,
        "failures": dict(sorted(tally.codes.items())),
        "classes": {manifest.labels[index]: count for index, count in likeliest},
        "drift": drift(tally, manifest.reference),
    }
