"""Counts that add up: of units to a job, in any order and after any kill to the same sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from service.scoring.input.items import Scalar

TEXT = "text"
EXACT = 2**53
"""Whole numbers up to here are the same as float64."""


@dataclass
class Tally:
    """What is known of some images without looking at them again."""

    scored: int = 0
    abstained: int = 0
    classes: dict[int, int] = field(default_factory=dict)
    """Class index -> images whose likeliest class it is."""
    codes: dict[str, int] = field(default_factory=dict)
    """Fault code -> images."""
    signals: dict[str, list[int]] = field(default_factory=dict)
    """Drift signal -> counts between the edges of the manifest's reference."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Input column that is carried along -> the narrowest of `bool`, `int`, `long`, `float`, `text` that holds all its values; `` for none yet."""

    @property
    def failed(self) -> int:
        """Images that could not be scored."""
        return sum(self.codes.values())

    @property
    def seen(self) -> int:
        """Images with an answer or a fault."""
        return self.scored + self.failed

    def add(self, other: Tally) -> None:
        """Add the counts of *other*."""
        self.scored += other.scored
        self.abstained += other.abstained
        for index, count in other.classes.items():
            self.classes[index] = self.classes.get(index, 0) + count
        for code, count in other.codes.items():
            self.codes[code] = self.codes.get(code, 0) + count
        for signal, counts in other.signals.items():
            before = self.signals.get(signal)
            self.signals[signal] = (
                list(counts)
                if before is None
                else [a + b for a, b in zip(before, counts, strict=True)]
            )
        for column, kind in other.kinds.items():
            self.kinds[column] = wider(self.kinds.get(column, ""), kind)


def kinds_of(rows: Iterable[Iterable[tuple[str, Scalar]]]) -> dict[str, str]:
    """Column -> kind of *rows* of (column, value)."""
    kinds: dict[str, str] = {}
    for row in rows:
        for column, value in row:
            kind = _kind(value)
            kinds[column] = wider(kinds.get(column, ""), kind)
    return kinds


def _kind(value: Scalar) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "bool"
        case int():
            # Larger whole numbers must not share a column with fractions, in which they would
            # change.
            return "int" if -EXACT <= value <= EXACT else "long"
        case float():
            return "float"
        case _:
            return TEXT


def wider(one: str, other: str) -> str:
    """The narrowest kind that holds values of both."""
    match {one, other} - {""}:
        case kinds if len(kinds) < 2:
            return one or other
        case kinds if kinds == {"int", "long"}:
            return "long"
        case kinds if kinds == {"int", "float"}:
            return "float"
        case _:
            return TEXT
