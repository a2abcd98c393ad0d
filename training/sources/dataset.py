"""`Example` and `Dataset`: what every kind of source comes down to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError


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

    def read(self) -> bytes:
        """The encoded image. Raises `DataError` if its file went away."""
        if self.encoded is not None:
            return self.encoded
        if self.reader is not None:
            return self.reader()
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error

    def head(self, count: int) -> bytes:
        """The first *count* bytes: of a file no more is read. Raises `DataError` if it went away."""
        if self.path is None:
            return self.read()[:count]
        try:
            with self.path.open("rb") as stream:
                return stream.read(count)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Dataset:
    """Images of each split, and the class names in the order that the model will use."""

    source: str
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """`train` and `val`, and `test` where there is one."""

    @property
    def held_out(self) -> str:
        """The split that judges the model: `test`, or `val` where there is none."""
        return "test" if self.splits.get("test") else "val"
