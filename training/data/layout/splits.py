"""Which names mean train, val or test: one rule for folders, archives and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.data.layout.names import few_of, printable

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
    """The split that one word of *name* means, and its other words but for fillers: `seg_train`
    gives `train` and `seg`.

    None if no word means a split, or if two words mean different ones.
    """
    # `vaL` is no word in camel case: a name that is one, whatever its case, is taken whole.
    words = (
        [name.lower()]
        if name.lower() in SPLIT_OF
        else [word.lower() for word in _WORD.findall(name)]
    )
    words = [part for word in words for part in _GLUED.sub(r"\1 \2", word).split()]
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    rest = " ".join(
        word
        for word in words
        if word not in SPLIT_OF and word not in FILLERS and not word.isdecimal()
    )
    return (found.pop(), rest) if len(found) == 1 else (None, rest)


@dataclass(frozen=True)
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
class Recognised:
    """What the folders at the top of a source are."""

    splits: dict[str, str] = field(default_factory=dict)
    """Split -> folder; empty if the folders are classes."""
    left_alone: dict[str, str] = field(default_factory=dict)
    """Folder -> why nothing in it is used."""
    problems: list[str] = field(default_factory=list)


def recognise(
    place: str, shapes: Mapping[str, Shape], named: Mapping[str, str] | None
) -> Recognised:
    """Which of the folders of *place*, name -> shape, are splits: those that are *named*, else
    those with the usual names.
    """
    if named is not None:
        return _as_named(place, shapes, named) if named else Recognised()
    meant = _meant(shapes)
    if not meant:
        return Recognised(problems=_doubtful(place, shapes))
    if not any(shapes[name].has_classes for name in meant):
        return _without_classes(place, shapes, meant)
    found = Recognised(problems=_twice(place, meant))
    for split in SPLIT_NAMES:
        for name in (name for name, of in meant.items() if of == split):
            _take(found, place, split, name, shapes[name])
    _others(found, place, shapes, meant)
    return found


def way_out(meant: Mapping[str, str]) -> str:
    """The option that names the folders, name -> split, as they would be taken."""
    return "--split " + ",".join(
        f"{split}={name}" for name, split in {of: (name, of) for name, of in meant.items()}.values()
    )


def _meant(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Folder -> split, for names that mean a split alone, or together: `seg_train` beside
    `seg_test`, but no `train_station`.
    """
    guessed = {name: guess(name) for name in shapes}
    meant = {}
    for name, (split, rest) in guessed.items():
        partners = {
            of
            for other, (of, same) in guessed.items()
            if other != name and same == rest and of is not None
        }
        if split is not None and (not rest or partners - {split}):
            meant[name] = split
    return meant


def _take(found: Recognised, place: str, split: str, name: str, shape: Shape) -> None:
    if shape.has_classes or split == "train":
        found.splits.setdefault(split, name)
        if not shape.has_classes:
            found.problems.append(
                f"{place}/{name} has no class folders; expected {place}/{name}/<class>/*.jpg"
            )
    else:
        found.left_alone[name] = f"in {name}, which has no class folders"


def _others(
    found: Recognised, place: str, shapes: Mapping[str, Shape], meant: Mapping[str, str]
) -> None:
    """Folders beside the splits. Where one split alone has classes, it might be a class itself."""
    others = [name for name in shapes if name not in meant]
    found.left_alone |= dict.fromkeys(others, "beside the splits")
    with_images = [name for name in others if shapes[name].images]
    if with_images and sum(shapes[name].has_classes for name in meant) == 1:
        found.problems.append(
            f"{place} has {_told(list(meant))}, called as a split, among the folders"
            f" {_told(with_images)}; say {way_out(meant)} to leave the others out, or --split none"
            " if all of them are classes"
        )


def _doubtful(place: str, shapes: Mapping[str, Shape]) -> list[str]:
    """A name such as `seg_train` without a partner, on a folder that holds folders alone."""
    meant = {
        name: split
        for name, shape in shapes.items()
        if (split := guess(name)[0]) and shape.folders and not shape.direct
    }
    told = (
        f"{place} has {_told(list(meant))}, which may be a split or a class; say {way_out(meant)},"
        " or --split none if all folders are classes"
    )
    return [told] if meant else []


def _without_classes(
    place: str, shapes: Mapping[str, Shape], meant: Mapping[str, str]
) -> Recognised:
    names, others = _told(list(meant)), [name for name in shapes if name not in meant]
    if others:
        text = (
            f"{place} has {names}, called as a split but without class folders, among the folders"
            f" {_told(others)}; "
        )
        text += "say --split none if all of them are classes, or move it elsewhere"
    else:
        text = (
            f"{place} has {names}, called as splits but without class folders; expected"
            f" {place}/{next(iter(meant))}/<class>/*.jpg. "
        )
        text += (
            "Say --split none if they are the classes, or list images and labels in a table"
            " (csv:PATH)"
        )
    return Recognised(problems=[text])


def _twice(place: str, meant: Mapping[str, str]) -> list[str]:
    names = {split: [name for name, of in meant.items() if of == split] for split in SPLIT_NAMES}
    return [
        f"{place} has {len(same)} folders for {split}: {_told(same)}; say which to take, as in"
        f" {way_out(meant)}"
        for split, same in names.items()
        if len(same) > 1
    ]


def _as_named(place: str, shapes: Mapping[str, Shape], named: Mapping[str, str]) -> Recognised:
    found = Recognised()
    for split, wanted in named.items():
        name = same_name(wanted, list(shapes))
        if name is None:
            found.problems.append(
                f"{place} has no folder {wanted} (--split {split}={wanted}); found"
                f" {_told(list(shapes)) or 'none'}"
            )
        elif not shapes[name].has_classes:
            found.problems.append(
                f"{place}/{name} has no class folders; expected {place}/{name}/<class>/*.jpg"
            )
        else:
            found.splits[split] = name
    found.left_alone = {
        name: "not named by --split" for name in shapes if name not in found.splits.values()
    }
    return found


def _told(names: Sequence[str]) -> str:
    return printable(few_of(names))


def same_name(wanted: str, names: Sequence[str]) -> str | None:
    """That of *names* which is *wanted*: exactly, or else but for case."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)
