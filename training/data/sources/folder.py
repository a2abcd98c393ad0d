"""`folder:PATH`: class folders, in folders for train, val and test or without.

`PATH/train/<class>/*` and `PATH/val/<class>/*` (and `test`), or `PATH/<class>/*`, which is split.
"""

from __future__ import annotations

from pathlib import Path

from models.errors import DataError
from training.data.layout.names import class_order, few_of, number, printable
from training.data.layout.splits import SPLIT_NAMES, WHOLE, lay_out
from training.data.layout.tree import Tree, walk
from training.data.sources.dataset import SourceOptions, Unused
from training.data.sources.listing import Listing, by_split

OUTSIDE = "outside of any class folder"
TABLES = (".csv", ".tsv", ".txt")
PACKED = (".zip", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
UNKNOWN = "of classes that the training data has not"


def list_folder(rest: str, options: SourceOptions) -> Listing:
    """What the folder *rest* holds. Raises `DataError` if there is none."""
    root = Path(rest)
    _require_folder(root)
    tree = walk(root)
    layout = lay_out(tree, str(root), options.split)
    names = {
        split: class_order([printable(name) for name in layout.classes(tree, split)])
        for split in [split for split in SPLIT_NAMES if split in layout.folders] or [WHOLE]
    }
    first, labels = next(iter(names.items()))
    folders = {split: root / layout.folders.get(split, "") for split in names}
    found = by_split(((i.content, i.split, i.label) for i in layout.placed), labels)
    without_class = [
        Unused(
            image.content.name,
            OUTSIDE if image.label is None else UNKNOWN,
            image.content,
        )
        for image in layout.placed
        if image.label not in labels
    ]
    return Listing(
        source=f"folder:{root}",
        place=str(root),
        labels=labels,
        splits={
            split: tuple(sorted(found.get(split, ()), key=lambda example: example.label))
            for split in names
        },
        unused=(*tree.unused, *layout.unused, *without_class),
        problems=(*layout.problems, *_unknown(folders, names, labels)),
        training_problems=_too_few(folders[first], labels, tree),
        warnings=tuple(layout.warnings),
        split_noun="folder",
        by_name=[(image.content, None) for image in tree.images],
    )


def _require_folder(root: Path) -> None:
    try:
        found = root.is_dir()
    except (OSError, ValueError) as error:
        raise DataError(
            f"data folder {root} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if root.is_file():
        raise DataError(f"{root} is a file and no folder; {_instead(root)}")
    if not found:
        raise DataError(
            f"data folder {root} does not exist; expected {root}/<class>/*.jpg or"
            f" {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"
        )


def _instead(file: Path) -> str:
    """What to do about a *file* where a folder is expected."""
    endings = [ending.lower() for ending in file.suffixes]
    last = endings[-1] if endings else ""
    if last in PACKED or (".tar" in endings and last != ".tar"):
        return "unpack it first, and give the folder with its class folders"
    if last == ".tar":
        return f"an archive is given as tar:{file}"
    if last in TABLES:
        return f"a table of paths and labels is given as csv:{file}"
    return (
        f"expected a folder that holds <class>/*.jpg; a table is given as csv:{file}, an archive as"
        f" tar:{file}"
    )


def _too_few(folder: Path, labels: tuple[str, ...], tree: Tree) -> tuple[str, ...]:
    if len(labels) >= 2:
        return ()
    text = (
        f"{folder} has {number(labels, 'class folder')} ({', '.join(labels) or 'none'}); a"
        " classifier needs 2 or more, one folder for each class"
    )
    inside = [parts for parts in tree.folders if len(parts) == 2]
    one_folder = {parts[0] for parts in tree.folders} == set(labels)
    if one_folder and len(inside) > 1 and all(len(found.parts) > 2 for found in tree.images):
        text += f". If they lie in {labels[0]}, use folder:{folder / inside[0][0]}"
    return (text,)


def _unknown(
    folders: dict[str, Path], names: dict[str, tuple[str, ...]], labels: tuple[str, ...]
) -> list[str]:
    """The problems of the splits that have classes which the first one has not."""
    problems = []
    for split, found in names.items():
        if unknown := [name for name in found if name not in labels]:
            keep = ",".join(f"{of}={folder.name}" for of, folder in folders.items() if of != split)
            problems.append(
                f"{folders[split]} has classes that the training data has not: {few_of(unknown)};"
                f" known: {', '.join(labels)}. To leave this folder out: --split {keep}"
            )
    return problems
