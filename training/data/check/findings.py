"""What a check gives: findings, with a level and the images that they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from training.data.layout.names import number

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
Notes = Mapping[tuple[int, ...], str]
"""Places of images that belong together -> a note on them, or nothing."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, with all its images."""

    level: Level
    """`error`: training refuses it or leaves it out, or its figures would be false. `warning`: the
    model will be worse, or the figures doubtful. `info`: good to know."""
    check: str
    message: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    """Places in the list of all images. Images that belong together, as copies do, are a group."""
    notes: tuple[str, ...] = ()
    """A note on each group; empty if there are none."""
    files: tuple[str, ...] = ()
    """Names of what is no image of the data set, such as skipped files."""

    @property
    def noted(self) -> list[tuple[tuple[int, ...], str]]:
        """Each group with its note."""
        return list(zip(self.groups, self.notes or ("",) * len(self.groups), strict=True))


def of_images(
    level: Level,
    check: str,
    what: str,
    advice: str,
    notes: Notes,
    noun: str = "image",
) -> Iterator[Finding]:
    """A finding of the groups of images in *notes*, group -> note; none if there are none."""
    if notes:
        message = f"{number(notes, noun)} {what}"
        told = tuple(notes.values()) if any(notes.values()) else ()
        yield Finding(level, check, message, advice, tuple(notes), told)
