"""Which names mean train, val or test: one rule for folders, archives and tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from training.data.layout.names import few_of, printable
from training.data.layout.tree import Found, Tree
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
class Layout:
    """What the folders and images of a source are."""

    folders: dict[str, str] = field(default_factory=dict)
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
        above = (self.folders[split],) if self.folders else ()
        return [parts[-1] for parts in tree.folders if parts[:-1] == above]


def recognise(place: str, tree: Tree, named: Mapping[str, str] | None) -> Layout:
    """Which of the folders at the top of *tree*, which messages call *place*, are splits.

    They are those that are *named*, or those with the usual names if *named* is None.
    """
    tops = [parts[0] for parts in tree.folders if len(parts) == 1]
    inside = [image for image in tree.images if len(image.parts) > 1]
    nested = {parts[0] for parts in tree.folders if len(parts) > 1}
    with_classes = nested | {i.parts[0] for i in inside if i.own_label is not None}
    if named is not None:
        return _as_named(place, tops, with_classes, named) if named else Layout()
    meant = splits_meant(tops)
    others = [name for name in tops if name not in meant]
    if not meant:
        direct = {i.parts[0] for i in inside if len(i.parts) == 2 and i.own_label is None}
        return Layout(problems=_doubtful(place, [name for name in tops if name in nested - direct]))
    if not with_classes & set(meant):
        return Layout(problems=[_without_classes(place, meant, others)])
    layout = Layout(skipped=dict.fromkeys(others, "beside the splits"))
    for split in SPLIT_NAMES:
        names = [name for name, of in meant.items() if of == split]
        if len(names) > 1:
            layout.problems.append(
                f"{place} has {len(names)} folders for {split}: {_listed(names)}; say which to"
                f" take, as in {_advice(meant)}"
            )
        for name in names:
            if name in with_classes or split == "train":
                layout.folders.setdefault(split, name)
            else:
                layout.skipped[name] = f"in {name}, which has no class folders"
    layout.problems += [
        _no_classes(f"{place}/{name}")
        for name, of in meant.items()
        if of == "train" and name not in with_classes
    ]
    # Where one split alone has classes, it might be a class itself.
    holding = {image.parts[0] for image in inside}
    with_images = [name for name in others if name in holding]
    if with_images and len(with_classes & set(meant)) == 1:
        layout.problems.append(
            f"{place} has {_listed(meant)}, called as a split, among the folders"
            f" {_listed(with_images)}; say {_advice(meant)} to leave the others out, or --split"
            " none if all of them are classes"
        )
    return layout


def splits_meant(names: Sequence[str]) -> dict[str, str]:
    """Folder -> split, for *names* that mean a split alone or together.

    `seg_train` beside `seg_test` does, but not `train_station`.
    """
    guessed = {name: guess(name) for name in names}
    splits_of: dict[str, set[str]] = defaultdict(set)
    for split, rest in guessed.values():
        splits_of[rest] |= {split} if split else set()
    return {
        name: split
        for name, (split, rest) in guessed.items()
        if split and (not rest or len(splits_of[rest]) > 1)
    }


def _doubtful(place: str, names: Sequence[str]) -> list[str]:
    """The problem of a name such as `seg_train` without a partner, among folders of folders."""
    meant = {name: split for name in names if (split := guess(name)[0])}
    text = (
        f"{place} has {_listed(meant)}, which may be a split or a class; say {_advice(meant)}, or"
        " --split none if all folders are classes"
    )
    return [text] if meant else []


def _without_classes(place: str, meant: Mapping[str, str], others: Sequence[str]) -> str:
    if others:
        return (
            f"{place} has {_listed(meant)}, called as a split but without class folders, among the"
            f" folders {_listed(others)}; say --split none if all of them are classes, or move it"
            " elsewhere"
        )
    return (
        f"{place} has {_listed(meant)}, called as splits but without class folders; expected"
        f" {place}/{next(iter(meant))}/<class>/*.jpg. Say --split none if they are the classes, or"
        " list images and labels in a table (csv:PATH)"
    )


def _as_named(
    place: str, tops: Sequence[str], with_classes: Collection[str], named: Mapping[str, str]
) -> Layout:
    layout = Layout()
    for split, wanted in named.items():
        name = same_name(wanted, tops)
        if name is None:
            layout.problems.append(
                f"{place} has no folder {wanted} (--split {split}={wanted}); found"
                f" {_listed(tops) or 'none'}"
            )
        elif name not in with_classes:
            layout.problems.append(_no_classes(f"{place}/{name}"))
        else:
            layout.folders[split] = name
    others = [name for name in tops if name not in layout.folders.values()]
    layout.skipped = dict.fromkeys(others, "not named by --split")
    return layout


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
