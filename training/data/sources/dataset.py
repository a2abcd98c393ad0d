"""`Example`, `Unused` and `Dataset`: what every kind of source comes down to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import DataError
from models.files import read_file
from models.messages import told
from training.data.layout.names import few_of
from training.data.sources.archive import TarMember
from training.data.sources.options import SourceOptions


@dataclass(frozen=True)
class Example:
    """One encoded image and its class."""

    name: str
    """As a person would look for it: a path relative to the source, or a made name."""
    label: int
    path: Path | None = None
    encoded: bytes | None = None
    reader: Callable[[], bytes] | None = None
    """Gives the encoded image where it is neither a file nor in memory; called again for each read."""
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
            return read_file(self.path)
        except OSError as error:
            raise DataError(told(error, self.path)) from error

    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change of the file that holds it: while both stay, so do its
        bytes. (-1, 0) if there is no such file.
        """
        path = self.reader.shard if isinstance(self.reader, TarMember) else self.path
        try:
            status = path.stat() if path is not None else None
        except OSError:
            status = None
        # A file that is renamed or given another time of writing changes its ctime.
        return (
            (-1, 0)
            if status is None
            else (status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))
        )

    def head(self, count: int) -> bytes:
        """The first *count* bytes: of a file no more is read. Raises `DataError` if it went away."""
        if self.path is None:
            return self.read()[:count]
        try:
            with self.path.open("rb") as stream:
                return stream.read(count)
        except OSError as error:
            raise DataError(told(error, self.path)) from error


@dataclass(frozen=True)
class Unused:
    """A file, folder or row of a source that is not used."""

    name: str
    """As that of an `Example`; a folder that is left alone as a whole ends with `/`."""
    reason: str
    """In the words that stand behind a number: `30 .tif`, `2 hidden`."""
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
    """How the source was read: with these it is found again."""

    @property
    def held_out(self) -> str:
        """The split that judges the model: `test`, or `val` where there is none."""
        return "test" if self.splits.get("test") else "val"


def by_reason(unused: Sequence[Unused]) -> dict[str, tuple[str, ...]]:
    """Reason -> the names of what is unused for it."""
    names: dict[str, list[str]] = {}
    for entry in unused:
        names.setdefault(entry.reason, []).append(entry.name)
    return {reason: tuple(found) for reason, found in names.items()}


def usage(images: int, unused: Sequence[Unused], *, unreadable: int = 0) -> str:
    """Such as `1,240 images used; 31 not read: 30 .tif, 1 unreadable`."""
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
