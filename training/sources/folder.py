"""`folder:PATH`: `PATH/train/<class>/*` and `PATH/val/<class>/*` (and `test`), or `PATH/<class>/*`, which is then split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from models.errors import DataError
from training.sources.dataset import Example
from training.sources.listing import SPLIT_NAMES, SUFFIXES, WHOLE, Listing


def list_folder(rest: str) -> Listing:
    """What the folder *rest* holds. Raises `DataError` if there is none."""
    root = Path(rest)
    if not root.is_dir():
        raise DataError(
            f"data folder {root} does not exist; expected {root}/<class>/*.jpg or {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"
        )
    found = {split: _first_folder(root, names) for split, names in SPLIT_NAMES.items()}
    folders = {split: folder for split, folder in found.items() if folder is not None} or {WHOLE: root}
    first = next(iter(folders.values()))
    labels = _class_names(first)
    return Listing(
        source=f"folder:{root}",
        place=str(root),
        labels=labels,
        splits={split: _examples(folder, labels, root) for split, folder in folders.items()},
        skipped=tuple(_skipped({root, *folders.values()}, folders.values(), root)),
        problems=(*_too_few(first, labels), *(problem for folder in folders.values() for problem in _unknown(folder, labels))),
        split_noun="folder",
    )


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the class folders. The order is written into the package, so that nobody has to sort again."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _too_few(folder: Path, labels: tuple[str, ...]) -> list[str]:
    if len(labels) >= 2:
        return []
    return [f"{folder} has {len(labels)} class folders ({', '.join(labels) or 'none'}); a classifier needs 2 or more, one folder for each class"]


def _unknown(folder: Path, labels: tuple[str, ...]) -> list[str]:
    unknown = sorted(set(_class_names(folder)) - set(labels))
    return [f"{folder} has classes that the training data has not: {', '.join(unknown)}; known: {', '.join(labels)}"] if unknown else []


def _examples(folder: Path, labels: tuple[str, ...], root: Path) -> tuple[Example, ...]:
    return tuple(
        Example(name=path.relative_to(root).as_posix(), label=index, path=path)
        for index, label in enumerate(labels)
        for path in _files(folder / label, folder)
        if path.suffix.lower() in SUFFIXES
    )


def _skipped(parents: Iterable[Path], folders: Iterable[Path], root: Path) -> Iterator[Example]:
    """Files in class folders whose ending is not an image's, and all files that lie beside the class folders."""
    beside = [path for parent in sorted(parents) for path in sorted(parent.iterdir()) if path.is_file() and not path.name.startswith(".")]
    among = [
        path for folder in folders for label in _class_names(folder) for path in _files(folder / label, folder) if path.suffix.lower() not in SUFFIXES
    ]
    for path in (*beside, *among):
        yield Example(name=path.relative_to(root).as_posix(), label=0, path=path)


def _files(folder: Path, above: Path) -> Iterator[Path]:
    """Files in and below *folder*, sorted, but for hidden ones, as `._photo.jpg`, which macOS puts beside each photo of an archive."""
    for path in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in path.relative_to(above).parts) and path.is_file():
            yield path
