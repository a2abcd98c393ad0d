"""What every kind of source gives: images with their classes, and unused files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.errors import DataError
from models.files import read_file
from models.messages import os_error_text
from models.package.manifest import StrictRecord
from training.data.layout.names import few_of


class SourceOptions(StrictRecord):
    """How to read a source. A run records it, so that its data is found again."""

    split: dict[str, str] | None = None
    """Split -> its name in the source. Empty: nothing is a split. None: splits have usual names."""
    path_column: str | None = None
    """Column of a table with the paths."""
    label_column: str | None = None
    """Column of a table with the classes."""


@dataclass(frozen=True)
class Example:
    """One encoded image and its class."""

    name: str
    """A path relative to the source, or a made name."""
    label: int
    path: Path | None = None
    """Its file, or the archive that holds it."""
    encoded: bytes | None = None
    reader: Callable[[], bytes] | None = None
    """Gives the encoded image if neither a file nor memory has it; each read calls it again."""
    span: tuple[int, int] | None = None
    """Its offset in the archive *path*, and its size in bytes; None if it is a file."""
    fault: str = ""
    """Why it is known to be unreadable; empty if it is not."""

    def read(self) -> bytes:
        """The encoded image.

        Raises `DataError` if its file went away, is none any more, or has more than 256 MiB.
        """
        if self.fault:
            raise DataError(self.fault)
        if self.encoded is not None:
            return self.encoded
        if self.reader is not None:
            return self.reader()
        assert self.path is not None
        try:
            if self.span is None:
                return read_file(self.path)
            with self.path.open("rb") as stream:
                stream.seek(self.span[0])
                return stream.read(self.span[1])
        except OSError as error:
            raise DataError(os_error_text(error, self.path)) from error

    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change of its file; (-1, 0) if there is none.

        While both stay, so do its bytes.
        """
        try:
            status = os.stat(self.path or "")  # noqa: PTH116 - there is no path without a name
        except OSError:
            return -1, 0
        # A file that is renamed, or given another time of writing, changes its ctime.
        return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)

    def head(self, count: int) -> bytes:
        """The first *count* bytes; no more of a file is read. Raises `DataError` as `read`."""
        if self.path is None or self.span is not None:
            return self.read()[:count]
        try:
            with self.path.open("rb") as stream:
                return stream.read(count)
        except OSError as error:
            raise DataError(os_error_text(error, self.path)) from error


@dataclass(frozen=True)
class Unused:
    """A file, folder or row of a source that is not used."""

    name: str
    """Like the name of an `Example`. The name of a whole folder ends with `/`."""
    reason: str
    """It reads well behind a number: `30 .tif`, `2 hidden`."""
    content: Example | None = None
    """The file, where it can be looked into."""


@dataclass(frozen=True)
class Dataset:
    """Images of each split, and the class names in the order that the model will use."""

    source: str
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """`train` and `val`, and `test` where there is one."""
    unused: tuple[Unused, ...] = ()
    """Everything else that the source holds."""
    options: SourceOptions = field(default_factory=SourceOptions)
    """How the source was read. They find it again."""

    @property
    def held_out(self) -> str:
        """The split that judges the model: `test`, or `val` where there is none."""
        return "test" if self.splits.get("test") else "val"


def by_reason(unused: Sequence[Unused]) -> dict[str, tuple[str, ...]]:
    """Reason -> the names of files, folders and rows that are unused for it."""
    names: dict[str, list[str]] = {}
    for entry in unused:
        names.setdefault(entry.reason, []).append(entry.name)
    return {reason: tuple(found) for reason, found in names.items()}


def usage(images: int, unused: Sequence[Unused], *, unreadable: int = 0) -> str:
    """A summary, such as `1,240 images used; 31 not read: 30 .tif, 1 unreadable`."""
    counted = Counter(entry.reason for entry in unused)
    if unreadable:
        counted["unreadable"] += unreadable
    head = f"{images:,} {'image' if images == 1 else 'images'} used"
    if not counted:
        return head
    return (
        f"{head}; {counted.total():,} not read:"
        f" {few_of([f'{count:,} {reason}' for reason, count in counted.most_common()])}"
    )


def aligned(dataset: Dataset, labels: tuple[str, ...]) -> Dataset:
    """*dataset* with *labels* as its classes, by name; without the images of other classes."""
    if dataset.labels == labels:
        return dataset
    splits = {
        split: relabelled(examples, dataset.labels, labels)
        for split, examples in dataset.splits.items()
    }
    return replace(dataset, labels=labels, splits=splits)


def relabelled(
    examples: Sequence[Example], old: Sequence[str], new: Sequence[str]
) -> tuple[Example, ...]:
    """*examples* whose labels are places in *old*, with places of the same names in *new*.

    Images of other classes are left out.
    """
    places = {name: place for place, name in enumerate(new)}
    return tuple(
        replace(example, label=places[old[example.label]])
        for example in examples
        if old[example.label] in places
    )


def missing(there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names of *wanted* that are not *there*, in order."""
    known = set(there)
    return [name for name in wanted if name not in known]
