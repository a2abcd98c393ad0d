"""The checks of a whole source: its layout, its classes, and the files that are not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from models.errors import DataError
from models.pixels import containers
from models.pixels.endings import LISTED
from training.data.check.findings import Finding, Level
from training.data.check.inspection import Seen
from training.data.layout.names import alike, few_of, number, printable
from training.data.layout.splits import WHOLE
from training.data.sources.dataset import Unused
from training.data.sources.listing import Listing

FEW_IMAGES = 10
IMBALANCE: dict[Level, float] = {"warning": 10.0, "info": 3.0}
"""Least ratio of the largest class to the smallest for each level."""
LOST = ("unreadable", "dangling", "linked", "not named", "in no row")
"""Beginnings of the reasons for which images may be lost."""


def layout(listing: Listing) -> Iterator[Finding]:
    """What training would refuse or should ask about, and labels that are nearly alike."""
    advice = "mend this first: the data cannot be trained on"
    for problem in (*listing.problems, *listing.training_problems):
        yield Finding("error", "layout", printable(problem), advice)
    advice = "look at it: if it is as you mean it, nothing is to do"
    for text in listing.warnings:
        yield Finding("warning", "layout", printable(text), advice)
    if not {WHOLE, "train"} & set(listing.splits):
        advice = "the data can judge a model but not train one"
        yield Finding("warning", "layout", f"there is no train {listing.split_noun}", advice)
    if groups := alike(listing.labels):
        message = (
            f"{number(groups, 'group')} of labels that differ only in case, Unicode form or outer"
            f" white space: {few_of([' and '.join(map(repr, group)) for group in groups])}"
        )
        yield Finding("warning", "labels alike", message, "give what is one class one name")


def classes(listing: Listing, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Classes that are empty, small or out of proportion, in each split."""
    counted = Counter((i.split, i.example.label) for i in seen if i.picture is not None)
    for split in listing.splits:
        counts = {label: counted[split, index] for index, label in enumerate(listing.labels)}
        where = "" if split == WHOLE else f" in {split}"
        if empty := [label for label, count in counts.items() if not count]:
            several = number(empty, "class", "classes")
            message = f"{several} without a readable image{where}: {few_of(empty)}"
            yield Finding("error", "empty class", message, "add images, or remove it")
        few = [f"{label} ({count})" for label, count in counts.items() if 0 < count < FEW_IMAGES]
        if few:
            several = number(few, "class", "classes")
            message = f"{several} with fewer than {FEW_IMAGES} images{where}: {few_of(few)}"
            advice = "the figures of such a class are chance; gather more"
            yield Finding("warning", "few images", message, advice)
        if split in ("train", WHOLE):
            yield from _imbalance(Counter(counts), where)


def _imbalance(counts: Counter[str], where: str) -> Iterator[Finding]:
    if not (ranked := (+counts).most_common()):
        return
    (largest, most), (smallest, least) = ranked[0], min(ranked, key=lambda item: item[1])
    ratio = most / least
    level = next((level for level, least_ratio in IMBALANCE.items() if ratio >= least_ratio), None)
    if level is not None:
        message = (
            f"{largest} has {ratio:.1f} times the images of {smallest}{where} ({most} and {least})"
        )
        advice = "gather more of the small classes; look at recall by class, not at accuracy alone"
        yield Finding(level, "imbalance", message, advice)


def unused(listing: Listing) -> Iterator[Finding]:
    """One finding for each reason: a warning where images are lost."""
    names: dict[tuple[Level, str], list[str]] = {}
    for entry in listing.unused:
        found = _format(entry)
        level: Level = "warning" if found or entry.reason.startswith(LOST) else "info"
        name = f"{entry.name} ({found})" if found else entry.name
        names.setdefault((level, entry.reason), []).append(name)
    advice = f"move or convert what belongs to the data, remove the rest; read are {LISTED}"
    for (level, reason), files in names.items():
        lost = level == "warning"
        yield Finding(
            level,
            "skipped images" if lost else "skipped files",
            f"not read: {len(files):,} {reason}: {few_of(files)}",
            advice if lost else "",
            files=tuple(files),
        )


def _format(entry: Unused) -> str | None:
    """The format of an image that is not used; None if it is no image, or cannot be read."""
    try:
        return containers.sniff(entry.content.head(1024)) if entry.content else None
    except DataError:
        return None
