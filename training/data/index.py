"""The index of a run's images: `images.jsonl` in its folder.

`--resume` and export use the images of the index, whatever was added to the source since. An image
whose file has the recorded size and time is not read again. An image with the recorded bytes is not
decoded again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from models.errors import DataError, RequestError, TrainingError
from models.files import parse_json
from models.machine import cpu_budget
from models.package.manifest import DataFingerprint, PreprocessSpec
from models.pixels.preprocess import to_pixels
from training.data.layout.names import few_of
from training.data.sources.dataset import Dataset, Example
from training.distributed import Processes
from training.progress import CONSOLE, shown

IMAGES_FILE = "images.jsonl"


class IndexedImage(NamedTuple):
    """One image of a run: a line of `images.jsonl`. Older runs have the first four columns."""

    split: str
    label: int
    name: str
    sha256: str | None
    """Hash of its bytes; empty before it was read; None if it was unreadable and left out."""
    size: int = -1
    """Bytes of its file; -1 if it is unknown."""
    changed_ns: int = 0
    """Time of the last change of its file."""
    reason: str = ""
    """Why it cannot be read now; empty if it can."""


@dataclass(frozen=True)
class Index:
    """The images of a run, in order."""

    dataset: Dataset
    """Has no image that was left out from the start. Reading one that broke since raises."""
    entries: tuple[IndexedImage, ...]

    @property
    def unreadable(self) -> dict[str, str]:
        """Images that were left out from the start: name -> reason."""
        return {entry.name: entry.reason for entry in self.entries if entry.sha256 is None}

    @property
    def broken(self) -> dict[tuple[str, str], str]:
        """Images that broke since: split and name -> reason."""
        return {
            (entry.split, entry.name): entry.reason
            for entry in self.entries
            if entry.reason and entry.sha256 is not None
        }

    def fingerprint(self, without: Collection[tuple[str, str]] = ()) -> DataFingerprint:
        """The fingerprint of the run's images, except those *without*, given as split and name.

        It is a hash over the split, class and bytes of every image in order, and their counts.
        """
        labels = self.dataset.labels
        kept = sorted(
            (
                (entry.split, entry.label, entry.sha256)
                for entry in self.entries
                if entry.sha256 is not None and (entry.split, entry.name) not in without
            ),
            key=itemgetter(0),
        )
        counted = Counter((split, label) for split, label, _ in kept)
        digest = hashlib.sha256()
        for split, label, sha256 in kept:
            digest.update(f"{split}\0{labels[label]}\0".encode() + bytes.fromhex(sha256))
        return DataFingerprint(
            source=self.dataset.source,
            sha256=digest.hexdigest(),
            splits={
                split: {name: counted[split, place] for place, name in enumerate(labels)}
                for split in sorted(self.dataset.splits)
            },
        )

    def readable(self) -> Dataset:
        """The data set without the images that broke."""
        return _arranged(self.dataset, [entry for entry in self.entries if not entry.reason])


def make_index(
    dataset: Dataset, spec: PreprocessSpec, *, most: float, begun: Sequence[IndexedImage] = ()
) -> Index:
    """The index of *dataset* for a new run, or of a run that *begun* lists, as *dataset* is now.

    Raises `DataError` if more than a share of *most*, 0 to 1, cannot be read or is no longer what
    it was, or if a class of a new run has no readable image in a split.
    """
    listed = begun or [
        IndexedImage(split, example.label, example.name, "")
        for split, examples in dataset.splits.items()
        for example in examples
    ]
    with ThreadPoolExecutor(max(1, math.ceil(cpu_budget())), thread_name_prefix="read") as pool:
        entries = tuple(pool.map(partial(_checked, spec), listed, _matching(dataset, listed)))
    if begun:
        _require_most(dataset.source, entries, most)
    else:
        bad = {(entry.split, entry.name): entry.reason for entry in entries if entry.reason}
        require_readable(dataset, bad, most=most)
    return Index(_arranged(dataset, entries), entries)


def require_readable(
    dataset: Dataset, unreadable: Mapping[tuple[str, str], str], *, most: float
) -> None:
    """Raises `DataError` if too much of *dataset* is *unreadable*: split and name -> reason.

    Too much is more than a share of *most*, 0 to 1, or all images of a class in a split.
    """
    total = sum(map(len, dataset.splits.values()))
    if len(unreadable) > most * total:
        (_, name), reason = next(iter(unreadable.items()))
        raise DataError(
            f"{dataset.source}: {len(unreadable)} of {total} images cannot be read, such as {name}:"
            f" {reason}. Up to {most:.1%} would be left out (max_unreadable_share); `loupe data"
            " check` lists them all"
        )
    for split, examples in dataset.splits.items():
        kept = {example.label for example in examples if (split, example.name) not in unreadable}
        if lost := sorted({example.label for example in examples} - kept):
            names = few_of([dataset.labels[label] for label in lost])
            raise DataError(
                f"{dataset.source}: split {split} has no images of {names} that can be read"
            )


def _require_most(source: str, entries: Sequence[IndexedImage], most: float) -> None:
    """Raises `DataError` if more than a share of *most* of a run's images is lost."""
    lost = [entry for entry in entries if entry.reason]
    if len(lost) > most * len(entries):
        such = next((entry for entry in lost if entry.sha256), lost[0])
        raise DataError(
            f"{source}: {len(lost)} of the {len(entries)} images of the run are gone, changed or"
            f" unreadable, such as {such.name}: {such.reason}. Up to {most:.1%} are left out"
            " (max_unreadable_share): restore them, or train again"
        )


def shared_index(
    dataset: Dataset,
    spec: PreprocessSpec,
    processes: Processes,
    *,
    most: float,
    begun: Sequence[IndexedImage] = (),
) -> Index:
    """The index as `make_index` gives it. The main process sends it to the others."""
    own, sent = {split: len(examples) for split, examples in dataset.splits.items()}, b""
    with processes.one_fate():
        if processes.main:
            made = make_index(dataset, spec, most=most, begun=begun)
            sent = json.dumps([own, made.entries]).encode()
    counts, lines = json.loads(processes.shared(sent))
    if own != counts:
        raise DataError(
            f"{dataset.source}: process {processes.rank} finds {own} images, and the main process"
            f" {counts}: give all hosts the same data"
        )
    entries = tuple(IndexedImage(*line) for line in lines)
    return Index(_arranged(dataset, entries), entries)


def warn_of_copies(entries: Sequence[IndexedImage]) -> None:
    """Say which images have the same bytes as one in another split."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        if entry.sha256:
            groups[entry.sha256].setdefault(entry.split, entry.name)
    if copies := [names for names in groups.values() if len(names) > 1]:
        such = " and ".join(f"{name} ({split})" for split, name in copies[0].items())
        number = f"{len(copies)} {'image has a copy' if len(copies) == 1 else 'images have copies'}"
        text = (
            f" in another split, such as {such}; the figures will be too good: `loupe data check`"
            " lists them"
        )
        CONSOLE.print(f"[yellow]{number}[/]{shown(text)}")


def write_index(folder: Path, entries: Sequence[IndexedImage]) -> None:
    """Write `images.jsonl` into a run's *folder*."""
    partial_file = folder / f"{IMAGES_FILE}.partial"
    with partial_file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in entries)
    partial_file.replace(folder / IMAGES_FILE)


def read_index(folder: Path) -> tuple[IndexedImage, ...]:
    """What `write_index` wrote; nothing if it did not. Raises `TrainingError` if it is damaged."""
    path = folder / IMAGES_FILE
    if not path.is_file():
        return ()
    try:
        with path.open(encoding="utf-8") as stream:
            return tuple(IndexedImage(*parse_json(line)) for line in stream)
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged: {error}; remove {folder} and train again"
        ) from error


def _checked(spec: PreprocessSpec, entry: IndexedImage, example: Example | None) -> IndexedImage:
    """*entry* after a check of *example*, the image of that name now."""
    if entry.sha256 is None:
        return entry._replace(reason=entry.reason or "could not be read when the run began")
    if example is None:
        return entry._replace(reason="is no longer there")
    size, changed_ns = example.stamp()
    same_class = example.label == entry.label
    if same_class and 0 <= size == entry.size and changed_ns == entry.changed_ns:
        return entry
    try:
        encoded = example.read()
        sha256 = hashlib.sha256(encoded).hexdigest()
        if sha256 != entry.sha256:
            to_pixels(encoded, spec)
    except (RequestError, DataError) as error:
        return entry._replace(sha256=entry.sha256 or None, reason=str(error))
    if not same_class or entry.sha256 not in ("", sha256):
        return entry._replace(reason="has another class or other content than it had")
    return entry._replace(sha256=sha256, size=size, changed_ns=changed_ns)


def _matching(dataset: Dataset, entries: Iterable[IndexedImage]) -> Iterator[Example | None]:
    """For each of *entries* the example with its name, in any split.

    A table may name an image twice: then the one with the entry's label, if there is one.
    """
    named: dict[str, list[Example]] = defaultdict(list)
    for examples in dataset.splits.values():
        for example in examples:
            named[example.name].append(example)
    for entry in entries:
        found = named[entry.name]
        same = (place for place, example in enumerate(found) if example.label == entry.label)
        yield found.pop(next(same, 0)) if found else None


def _arranged(dataset: Dataset, entries: Sequence[IndexedImage]) -> Dataset:
    """*dataset* with the images and splits of *entries*."""
    splits: dict[str, list[Example]] = {entry.split: [] for entry in entries}
    for entry, example in zip(entries, _matching(dataset, entries), strict=True):
        if entry.sha256 is not None:
            splits[entry.split].append(
                Example(entry.name, entry.label, fault=entry.reason or "is no longer there")
                if entry.reason or example is None
                else example
            )
    return replace(dataset, splits={split: tuple(found) for split, found in splits.items()})
