"""Lists the files of a folder: images, and unused files with the reason."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.errors import DataError
from models.pixels.endings import ENDINGS, what_is_missing
from training.data.layout.names import litter, printable
from training.data.sources.dataset import Example, Unused

Parts = tuple[str, ...]
"""A path below the root, as its names."""
_Key = tuple[int, int]
"""Device and inode of a folder."""


class FoundImage(NamedTuple):
    """A file that ends as an image does."""

    parts: Parts
    content: Example
    """Its label is not set yet."""
    own_label: str | None = None
    """The label that a file beside it gives, as in archives."""
    split: str | None = None
    """None if no folder says it."""
    label: str | None = None
    """None if it lies in no class folder and has no label of its own."""


@dataclass
class Tree:
    """Everything below a root: each file and folder is in one of the three lists."""

    images: list[FoundImage] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    def add_unused(
        self, parts: Parts, reason: str, *, content: Example | None = None, folder: bool = False
    ) -> None:
        """Name what is not used."""
        self.unused.append(
            Unused(content.name if content else joined(parts) + "/" * folder, reason, content)
        )


def joined(parts: Parts) -> str:
    """The path *parts* as text."""
    return printable("/".join(parts))


def walk(root: Path) -> Tree:
    """Everything below the folder *root*, by name.

    Links are followed, but never to a folder above, and to no folder twice in one class. What
    cannot be read is named as unused. Raises `DataError` if *root* itself cannot be read.
    """
    tree = Tree()
    within: dict[Parts, set[_Key]] = defaultdict(set)
    stack: list[tuple[Parts, frozenset[_Key]]] = [((), frozenset())]
    while stack:
        parts, above = stack.pop()
        path = root.joinpath(*parts)
        try:
            status = path.stat()
            with os.scandir(path) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if not parts:
                raise DataError(f"data folder {root} cannot be read: {error.strerror}") from error
            tree.add_unused(parts, f"unreadable ({error.strerror})", folder=True)
            continue
        key = status.st_dev, status.st_ino
        # Classes lie one or two folders deep: below that, the same folder again would be the same
        # images under the same label.
        if key in above or key in within[parts[:2]]:
            which = "above" if key in above else "that is read already"
            tree.add_unused(parts, f"linked to a folder {which}", folder=True)
            continue
        within[parts[:2]].add(key)
        if not entries and parts:
            tree.add_unused(parts, "empty", folder=True)
        below = [child for entry in entries if (child := _entry(tree, entry, (*parts, entry.name)))]
        tree.folders += below
        stack += [(child, above | {key}) for child in reversed(below)]
    # The stack gives the files of a folder before those of its folders; all others sort by name.
    tree.images.sort(key=lambda found: found.parts)
    return tree


def _entry(tree: Tree, entry: os.DirEntry[str], parts: Parts) -> Parts | None:
    """*parts* if *entry* is a folder to look into; anything else goes into *tree*."""
    try:
        # A plain file needs no call for its mode: there may be millions.
        mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else entry.stat().st_mode
    except OSError as error:
        tree.add_unused(
            parts, "dangling" if entry.is_symlink() else f"unreadable ({error.strerror})"
        )
        return None
    is_folder = stat.S_ISDIR(mode)
    if reason := litter(parts[-1]):
        tree.add_unused(parts, reason, folder=is_folder)
    elif is_folder:
        return parts
    elif not stat.S_ISREG(mode):
        tree.add_unused(parts, "not a regular file")
    else:
        sort_in(tree, parts, Example(name=joined(parts), label=0, path=Path(entry.path)))
    return None


def sort_in(tree: Tree, parts: Parts, content: Example, *, own_label: str | None = None) -> None:
    """Take a file into *tree*: as an image if it ends like one."""
    ending = PurePosixPath(parts[-1]).suffix.lower()
    missing = what_is_missing(ending)
    if ending in ENDINGS and missing is None:
        tree.images.append(FoundImage(parts, content, own_label))
    else:
        shown = printable(ending) or "without an ending"
        tree.add_unused(parts, f"{shown} ({missing})" if missing else shown, content=content)
