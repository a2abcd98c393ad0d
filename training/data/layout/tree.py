"""What lies below a root, be it a folder or an archive: images, folders, and all the rest with the
reason why it is not used.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.errors import DataError
from models.pixels.endings import ENDINGS, what_is_missing
from training.data.layout.names import litter, printable
from training.data.sources.dataset import Example, Unused

Parts = tuple[str, ...]
"""A path below the root, as its names."""


class Found(NamedTuple):
    """An image, by its ending."""

    parts: Parts
    content: Example
    """Without its label yet."""
    own: str | None = None
    """The label that a file beside it gives, as in archives."""


@dataclass
class Tree:
    """Everything below a root: each file and folder is an image, a folder above something, or
    unused.
    """

    images: list[Found] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    def leave(
        self, parts: Parts, reason: str, *, content: Example | None = None, folder: bool = False
    ) -> None:
        """Name what is not used."""
        self.unused.append(
            Unused(content.name if content else joined(parts) + "/" * folder, reason, content)
        )


class _Folder(NamedTuple):
    parts: Parts
    above: frozenset[tuple[int, int]]
    """Device and inode of the folders above it."""


def joined(parts: Parts) -> str:
    """The path *parts* as text."""
    return printable("/".join(parts))


def walk(root: Path) -> Tree:
    """Everything below the folder *root*, by name.

    Links are followed, but never to a folder above, and to no folder twice in one class.

    Whatever cannot be looked into is named, and stops nothing. Raises `DataError` if *root* itself
    cannot.
    """
    tree = Tree()
    within: dict[Parts, set[tuple[int, int]]] = defaultdict(set)
    stack = [_Folder((), frozenset())]
    while stack:
        folder = stack.pop()
        path = root.joinpath(*folder.parts)
        try:
            status = path.stat()
            with os.scandir(path) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if not folder.parts:
                raise DataError(f"data folder {root} cannot be read: {error.strerror}") from error
            tree.leave(folder.parts, f"unreadable ({error.strerror})", folder=True)
            continue
        key = status.st_dev, status.st_ino
        # Classes lie one or two folders deep: below that, the same folder again would be the same
        # images under the same label.
        if key in folder.above or key in within[folder.parts[:2]]:
            tree.leave(
                folder.parts,
                "linked to a folder above"
                if key in folder.above
                else "linked to a folder that is read already",
                folder=True,
            )
            continue
        within[folder.parts[:2]].add(key)
        if not entries and folder.parts:
            tree.leave(folder.parts, "empty", folder=True)
        below = [
            parts
            for entry in entries
            if (parts := _entry(tree, entry, (*folder.parts, entry.name)))
        ]
        tree.folders += below
        stack += [_Folder(parts, folder.above | {key}) for parts in reversed(below)]
    # A folder's files come before its folders here, and by name all together to everybody else.
    tree.images.sort(key=lambda found: found.parts)
    return tree


def _entry(tree: Tree, entry: os.DirEntry[str], parts: Parts) -> Parts | None:
    """*parts* if *entry* is a folder to look into; anything else is taken into *tree*."""
    try:
        # A plain file needs no call for its mode: there may be millions.
        mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else entry.stat().st_mode
    except OSError as error:
        tree.leave(parts, "dangling" if entry.is_symlink() else f"unreadable ({error.strerror})")
        return None
    is_folder = stat.S_ISDIR(mode)
    if reason := litter(parts[-1]):
        tree.leave(parts, reason, folder=is_folder)
    elif is_folder:
        return parts
    elif not stat.S_ISREG(mode):
        tree.leave(parts, "not a regular file")
    else:
        sort_in(tree, parts, Example(name=joined(parts), label=0, path=Path(entry.path)))
    return None


def sort_in(tree: Tree, parts: Parts, content: Example, *, own: str | None = None) -> None:
    """Take a file into *tree*: as an image if it ends like one."""
    ending = PurePosixPath(parts[-1]).suffix.lower()
    missing = what_is_missing(ending)
    if ending in ENDINGS and missing is None:
        tree.images.append(Found(parts, content, own))
    else:
        shown = printable(ending) or "without an ending"
        tree.leave(parts, f"{shown} ({missing})" if missing else shown, content=content)


def folders_of(images: list[Found]) -> Iterator[Parts]:
    """The folders above *images*, each once."""
    yield from dict.fromkeys(
        found.parts[:end] for found in images for end in range(1, len(found.parts))
    )
