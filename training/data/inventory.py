"""Every image that a run was begun with, in `images.jsonl` of its folder: by it a run goes on, and
is exported, though some of them are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from models.errors import DataError, TrainingError
from models.files import parse_json, read_text
from models.package.manifest import DataFingerprint, PreprocessSpec
from training.data.layout.splits import WHOLE
from training.data.source import (
    AS_USUAL,
    Dataset,
    Example,
    SourceOptions,
    fingerprint_of,
    list_source,
    readable,
    without_unreadable,
)
from training.progress import CONSOLE, shown

IMAGES_FILE = "images.jsonl"
OTHER_CLASS = -1
"""Label of an image that is in no class of the run."""


class Entry(NamedTuple):
    """One image of a run."""

    split: str
    label: int
    name: str
    sha256: str | None
    """Of its bytes; None if it could not be read when the run was begun, and was left out."""


@dataclass(frozen=True)
class Missing:
    """Stands for an image that is known to be broken; a call says why."""

    reason: str

    def __call__(self) -> bytes:
        """Raises `DataError`."""
        raise DataError(self.reason)


@dataclass(frozen=True)
class Inventory:
    """The images of a run, in order, and those that are left out."""

    dataset: Dataset
    """Without those that were unreadable from the start; what broke since has its place, and cannot be read."""
    entries: tuple[Entry, ...]
    unreadable: Mapping[str, str]
    """From the start: name -> reason."""
    broken: Mapping[tuple[str, str], str]
    """Since then: split and name -> reason."""

    @property
    def fingerprint(self) -> DataFingerprint:
        """Of all images that the run was begun with, whether or not they are still there."""
        return self.left({})

    @property
    def copies_across(self) -> list[tuple[Entry, ...]]:
        """Images with the same bytes in two splits or more: the model is judged on what it has
        learnt.
        """
        groups: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            if entry.sha256 is not None:
                groups[entry.sha256].append(entry)
        return [
            tuple(group) for group in groups.values() if len({entry.split for entry in group}) > 1
        ]

    def left(self, broken: Mapping[tuple[str, str], str]) -> DataFingerprint:
        """Of those images but for what is *broken*."""
        rows = [
            (entry.split, entry.label, entry.sha256)
            for entry in self.entries
            if entry.sha256 is not None and (entry.split, entry.name) not in broken
        ]
        splits = self.dataset.splits
        return fingerprint_of(self.dataset.source, self.dataset.labels, rows, splits=list(splits))


def take_inventory(dataset: Dataset, spec: PreprocessSpec, *, most: float) -> Inventory:
    """Of what is in *dataset*, for a new run.

    Raises `DataError` if more than a share of *most* cannot be read.
    """
    kept, bad = without_unreadable(dataset, spec, most=most)
    entries = [
        Entry(split, e.label, e.name, _sha256(e))
        for split, examples in kept.splits.items()
        for e in examples
    ]
    left_out = [
        Entry(split, e.label, e.name, None)
        for split, examples in dataset.splits.items()
        for e in examples
        if e.name in bad
    ]
    return Inventory(kept, (*entries, *left_out), bad, {})


def list_again(
    source: str, begun: Sequence[Entry], labels: Sequence[str], options: SourceOptions = AS_USUAL
) -> Dataset:
    """What *source* has now, as a run knows it that was *begun* with these images and *labels*: in
    one split, whatever was added beside them.

    Layout and completeness are not judged: only what the run names matters. Raises `DataError` if
    *source* cannot be found or read.
    """
    listing = list_source(source, options)
    own = {entry.name: entry.label for entry in begun}
    places = {label: place for place, label in enumerate(labels)}
    examples = tuple(
        # A class that the run has not is another one than it had.
        replace(
            example,
            label=(
                own.get(example.name, OTHER_CLASS)
                if label is None
                else places.get(label, OTHER_CLASS)
            ),
        )
        for example, label in listing.images()
    )
    unused = tuple(entry for entry in listing.unused if entry.name not in own)
    return Dataset(listing.source, tuple(labels), {WHOLE: examples}, unused, options)


def find_again(
    begun: Sequence[Entry], dataset: Dataset, spec: PreprocessSpec, *, most: float
) -> Inventory:
    """The images of a run that was *begun* with these, from what *dataset* is now; what was added
    since is left aside.

    An image that is gone, broken, or other than it was counts as broken. Raises `DataError` if more
    than a share of *most* is.
    """
    there, bad = _by_name(dataset, spec, {entry.name for entry in begun})
    splits: dict[str, list[Example]] = {
        split: [] for split in dict.fromkeys(entry.split for entry in begun)
    }
    unreadable: dict[str, str] = {}
    broken: dict[tuple[str, str], str] = {}
    for entry in begun:
        found = _taken(there[entry.name], entry.label)
        if entry.sha256 is None:
            unreadable[entry.name] = bad.get(entry.name, "could not be read when the run was begun")
            continue
        if found is None:
            reason = broken[entry.split, entry.name] = bad.get(entry.name, "is no longer there")
            found = Example(name=entry.name, label=entry.label, reader=Missing(reason))
        elif (found.label, _sha256(found)) != (entry.label, entry.sha256):
            reason = broken[entry.split, entry.name] = (
                "has another class or other content than it had"
            )
            found = Example(name=entry.name, label=entry.label, reader=Missing(reason))
        splits[entry.split].append(found)
    if len(broken) + len(unreadable) > most * len(begun):
        (name, reason), *_ = [
            *((name, reason) for (_, name), reason in broken.items()),
            *unreadable.items(),
        ]
        raise DataError(
            f"{dataset.source}: {len(broken) + len(unreadable)} of the {len(begun)} images of the"
            f" run are gone, changed or unreadable, such as {name}: {reason}. Up to {most:.1%} are"
            " left out (max_unreadable_share): restore them, or train again"
        )
    made = replace(dataset, splits={split: tuple(examples) for split, examples in splits.items()})
    return Inventory(made, tuple(begun), unreadable, broken)


def still_there(
    run: Path, dataset: Dataset, spec: PreprocessSpec, *, most: float
) -> tuple[Dataset, Inventory]:
    """What *dataset* still has of the images of the run in folder *run*, split as they were.

    Raises `DataError` as `find_again` does.
    """
    begun = read_inventory(run)
    if not begun:
        raise DataError(f"{run} has no {IMAGES_FILE}, the list of its images: train again")
    found = find_again(begun, dataset, spec, most=most)
    splits = {
        split: tuple(e for e in examples if (split, e.name) not in found.broken)
        for split, examples in found.dataset.splits.items()
    }
    return replace(dataset, splits=splits), found


def tell_added(begun: Sequence[Entry], dataset: Dataset, unused: Iterable[str] = ()) -> None:
    """Say how many images *dataset* has that a run which was *begun* with these, and left out the
    *unused*, had not.
    """
    known = Counter([*(entry.name for entry in begun), *unused])
    now = Counter(example.name for examples in dataset.splits.values() for example in examples)
    new = sorted((now - known).elements())
    if new:
        CONSOLE.print(
            f"[yellow]added since the run began, and ignored: {len(new)}[/], such as"
            f" {shown(new[0])}"
        )


def write_inventory(folder: Path, entries: Sequence[Entry]) -> None:
    """Write `images.jsonl` into a run's *folder*."""
    partial = folder / f"{IMAGES_FILE}.partial"
    partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    partial.replace(folder / IMAGES_FILE)


def read_inventory(folder: Path) -> tuple[Entry, ...]:
    """What `write_inventory` wrote; nothing if it did not. Raises `TrainingError` if it is damaged."""
    path = folder / IMAGES_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(Entry(*parse_json(line)) for line in read_text(path).splitlines())
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged: {error}; remove {folder} and train again"
        ) from error


def _by_name(
    dataset: Dataset, spec: PreprocessSpec, names: Set[str]
) -> tuple[Mapping[str, deque[Example]], Mapping[str, str]]:
    """The images called *names* of all splits that can be read, and the reasons of the others; a
    source may now be split in another way.
    """
    there: dict[str, deque[Example]] = defaultdict(deque)
    bad: dict[str, str] = {}
    for examples in dataset.splits.values():
        kept, reasons = readable([example for example in examples if example.name in names], spec)
        bad |= reasons
        for example in kept:
            there[example.name].append(example)
    return there, bad


def _taken(there: deque[Example], label: int) -> Example | None:
    """One of *there*, no longer in it: if possible with *label*, since a table may name an image
    twice.
    """
    found = next(
        (example for example in there if example.label == label), there[0] if there else None
    )
    if found is not None:
        there.remove(found)
    return found


def _sha256(example: Example) -> str:
    return hashlib.sha256(example.read()).hexdigest()
