"""Which names mean train, val or test: one rule for folders, archives and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from training.data.layout.names import few_of, printable
from training.data.layout.tree import Found, Parts, Tree
from training.data.sources.dataset import Unused

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Split -> what folders, shards and tables may call it, in any case."""
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
WHOLE = "all"
"""The one split of a source that comes in one piece."""
FILLERS = frozenset({"set", "data", "dataset", "split", "image", "images", "img", "imgs", "photos"})
"""Words that change nothing: `train_set`, `ValData`. Numbers change nothing either: `train2017`."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")
_GLUED = re.compile(rf"^({'|'.join(SPLIT_OF)})({'|'.join(FILLERS)})$")


def split_of(name: str) -> str | None:
    """The split that *name* means by itself, with fillers or without; None for any other name."""
    split, rest = guess(name)
    return split if not rest else None


def guess(name: str) -> tuple[str | None, str]:
    """The split that one word of *name* means, and its other words but for fillers.

    `seg_train` gives `train` and `seg`. The split is None if no word means one, or if two words
    mean different ones.
    """
    # `vaL` is no word in camel case: a name that is one, whatever its case, is taken whole.
    words = [name] if name.lower() in SPLIT_OF else _WORD.findall(name)
    words = [part for word in words for part in _GLUED.sub(r"\1 \2", word.lower()).split()]
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    rest = " ".join(
        word for word in words if not (word in SPLIT_OF or word in FILLERS or word.isdecimal())
    )
    return (found.pop() if len(found) == 1 else None), rest


@dataclass
class Shape:
    """What lies in a folder at the top of a source."""

    direct: int = 0
    """Images that lie in it directly and have no label of their own."""
    labelled: int = 0
    """Images with a label of their own."""
    folders: int = 0
    """Folders that lie in it directly."""
    images: int = 0
    """Images in all, at any depth."""

    @property
    def has_classes(self) -> bool:
        """Its images have labels, by folders or of their own."""
        return self.folders > 0 or self.labelled > 0


@dataclass
class Layout:
    """What the folders and images of a source are."""

    folders: dict[str, Parts] = field(default_factory=dict)
    """Split -> its folder; empty if the folders at the top are classes."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Folder at the top -> why nothing in it is used."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    placed: list[Found] = field(default_factory=list)
    """Images with their split and label."""
    unused: list[Unused] = field(default_factory=list)

    def classes(self, tree: Tree, split: str) -> list[str]:
        """The class folders of *split*, or of the whole tree, with images or without."""
        above = self.folders.get(split, ())
        return [parts[-1] for parts in tree.folders if parts[:-1] == above]


def recognise(place: str, shapes: Mapping[str, Shape], named: Mapping[str, str] | None) -> Layout:
    """Which of the folders of *place*, name -> shape, are splits.

    They are those that are *named*, or those with the usual names if *named* is None.
    """
    if named is not None:
        return _as_named(place, shapes, named) if named else Layout()
    meant = _meant(shapes)
    others = [name for name in shapes if name not in meant]
    with_classes = [name for name in meant if shapes[name].has_classes]
    if not with_classes:
        return Layout(problems=_without_splits(place, shapes, meant, others))
    found = Layout(skipped=dict.fromkeys(others, "beside the splits"))
    for split in SPLIT_NAMES:
        names = [name for name, of in meant.items() if of == split]
        if len(names) > 1:
            found.problems.append(
                f"{place} has {len(names)} folders for {split}: {_listed(names)}; say which to"
                f" take, as in {_advice(meant)}"
            )
        for name in names:
            if shapes[name].has_classes or split == "train":
                found.folders.setdefault(split, (name,))
            else:
                found.skipped[name] = f"in {name}, which has no class folders"
    found.problems += [
        _no_classes(f"{place}/{name}")
        for name, of in meant.items()
        if of == "train" and name not in with_classes
    ]
    # Where one split alone has classes, it might be a class itself.
    with_images = [name for name in others if shapes[name].images]
    if with_images and len(with_classes) == 1:
        found.problems.append(
            f"{place} has {_listed(meant)}, called as a split, among the folders"
            f" {_listed(with_images)}; say {_advice(meant)} to leave the others out, or --split"
            " none if all of them are classes"
        )
    return found


def _meant(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Folder -> split, for names that mean a split alone or together.

    `seg_train` beside `seg_test` does, but not `train_station`.
    """
    guessed = {name: guess(name) for name in shapes}
    splits_of = {
        rest: {split for split, same in guessed.values() if split and same == rest}
        for _, rest in guessed.values()
    }
    return {
        name: split
        for name, (split, rest) in guessed.items()
        if split and (not rest or len(splits_of[rest]) > 1)
    }


def _without_splits(
    place: str, shapes: Mapping[str, Shape], meant: Mapping[str, str], others: Sequence[str]
) -> list[str]:
    """The problems of folders of which some are called as splits, and none is one for sure."""
    if not meant:
        # A name such as `seg_train` without a partner, on a folder that holds folders alone.
        doubtful = {
            name: split
            for name, shape in shapes.items()
            if (split := guess(name)[0]) and shape.folders and not shape.direct
        }
        text = (
            f"{place} has {_listed(doubtful)}, which may be a split or a class; say"
            f" {_advice(doubtful)}, or --split none if all folders are classes"
        )
        return [text] if doubtful else []
    if others:
        text = (
            f"{place} has {_listed(meant)}, called as a split but without class folders, among the"
            f" folders {_listed(others)}; say --split none if all of them are classes, or move it"
            " elsewhere"
        )
    else:
        text = (
            f"{place} has {_listed(meant)}, called as splits but without class folders; expected"
            f" {place}/{next(iter(meant))}/<class>/*.jpg. Say --split none if they are the classes,"
            " or list images and labels in a table (csv:PATH)"
        )
    return [text]


def _as_named(place: str, shapes: Mapping[str, Shape], named: Mapping[str, str]) -> Layout:
    found = Layout()
    for split, wanted in named.items():
        name = same_name(wanted, list(shapes))
        if name is None:
            found.problems.append(
                f"{place} has no folder {wanted} (--split {split}={wanted}); found"
                f" {_listed(shapes) or 'none'}"
            )
        elif not shapes[name].has_classes:
            found.problems.append(_no_classes(f"{place}/{name}"))
        else:
            found.folders[split] = (name,)
    others = [name for name in shapes if (name,) not in found.folders.values()]
    found.skipped = dict.fromkeys(others, "not named by --split")
    return found


def _advice(meant: Mapping[str, str]) -> str:
    """The option that names the folders, name -> split, as they would be taken."""
    last_of = {split: name for name, split in meant.items()}
    return "--split " + ",".join(f"{split}={name}" for split, name in last_of.items())


def _no_classes(folder: str) -> str:
    return f"{folder} has no class folders; expected {folder}/<class>/*.jpg"


def _listed(names: Iterable[str]) -> str:
    return printable(few_of(list(names)))


def same_name(wanted: str, names: Sequence[str]) -> str | None:
    """That of *names* which is *wanted*: exactly, or else but for case."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)
