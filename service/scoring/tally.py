"""Counts that add up: of units to a job, in any order and after any kill to the same sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from service.scoring.items import Scalar

TEXT = "text"
_KINDS: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "int"), (float, "float"), (str, TEXT))


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
    """Input column that is carried along -> `bool`, `int`, `float` or `text`, the narrowest that holds all its values; `` for none yet."""

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
            self.signals[signal] = list(counts) if before is None else [a + b for a, b in zip(before, counts, strict=True)]
        for column, kind in other.kinds.items():
            self.kinds[column] = wider(self.kinds.get(column, ""), kind)


def kinds_of(rows: Iterable[Iterable[tuple[str, Scalar]]]) -> dict[str, str]:
    """Column -> kind of *rows* of (column, value)."""
    kinds: dict[str, str] = {}
    for row in rows:
        for column, value in row:
            kind = next((name for type_, name in _KINDS if isinstance(value, type_)), "")
            kinds[column] = wider(kinds.get(column, ""), kind)
    return kinds


def wider(one: str, other: str) -> str:
    """The narrowest kind that holds values of both."""
    if one == other or not one or not other:
        return one or other
    return "float" if {one, other} == {"int", "float"} else TEXT
