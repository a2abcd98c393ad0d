"""Which folder is a split and which a class: one rule for folders, archives and tables.

The layout is `<split>/<class>/...` if folders at the top are named like splits, else `<class>/...`.
What lies deeper in a class folder belongs to the class.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from training.data.layout.names import few_of, printable
from training.data.layout.tree import FoundImage, Parts, Tree
from training.data.sources.dataset import Unused

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Split -> what folders, shards and tables may call it, in any case."""
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
WHOLE = "all"
"""The only split of a source that has no splits."""
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
    # A name that is a split's in any case, such as `vaL`, is not cut at its capital letters.
    words = [name] if name.lower() in SPLIT_OF else _WORD.findall(name)
    words = [part for word in words for part in _GLUED.sub(r"\1 \2", word.lower()).split()]
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    rest = " ".join(
        word for word in words if not (word in SPLIT_OF or word in FILLERS or word.isdecimal())
    )
    return (found.pop() if len(found) == 1 else None), rest


@dataclass
class SourceLayout:
    """What the folders and images of a source are."""

    folders: dict[str, str] = field(default_factory=dict)
    """Split -> its folder; empty if the folders at the top are classes."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Folder at the top -> why nothing in it is used."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    placed: list[FoundImage] = field(default_factory=list)
    """Images with their split and label."""
    unused: list[Unused] = field(default_factory=list)

    def classes(self, tree: Tree, split: str) -> list[str]:
        """The class folders of *split*, or of the whole tree, with images or without."""
        above = (self.folders[split],) if self.folders else ()
        return [parts[-1] for parts in tree.folders if parts[:-1] == above]


def lay_out(tree: Tree, place: str, named: Mapping[str, str] | None) -> SourceLayout:
    """Split and class of each image of *tree*. The splits are those *named*, or have usual names.

    *place* is the source in messages.
    """
    _join_doubled(tree)
    layout = _recognise(place, tree, named)
    split_of_folder = {name: split for split, name in layout.folders.items()}
    with_labels = {image.parts[:-1] for image in tree.images if image.own_label is not None}
    inside: dict[Parts, set[Parts]] = defaultdict(set)
    for image in tree.images:
        top = image.parts[0] if len(image.parts) > 1 else ""
        if reason := layout.skipped.get(top):
            layout.unused.append(Unused(image.content.name, reason, image.content))
            continue
        split = split_of_folder.get(top)
        rest = image.parts[1:] if split else image.parts
        # The last part is the file's name. Where other images of a folder have labels of their own,
        # the folder is no class.
        label = image.own_label
        if image.parts[:-1] not in with_labels and len(rest) > 1 and (split or not layout.folders):
            label = rest[0]
            above = len(image.parts) - len(rest) + 1
            nested = len(rest) > 2 and split_of(rest[1])
            inside[image.parts[:above]] |= {image.parts[: above + 1]} if nested else set()
        label = None if label is None else printable(label)
        layout.placed.append(image._replace(split=split, label=label))
    if named != {}:
        _check_inside(layout, place, inside)
    return layout


def _check_inside(layout: SourceLayout, place: str, inside: Mapping[Parts, set[Parts]]) -> None:
    """Say which folders *inside* class folders are named like splits; those are not at the top."""
    found = sorted(parts for folders in inside.values() for parts in folders)
    # With one class folder alone, its splits are most likely those of the source.
    if not found or len(inside) < 2:
        return
    text = (
        f"{place} has folders named like splits inside its class folders:"
        f" {printable(few_of(['/'.join(parts) for parts in found]))}"
    )
    as_one = "--split none takes what is in a class folder as one class"
    several = len({split_of(parts[-1]) for parts in found}) > 1
    if not layout.folders and all(inside.values()) and several:
        layout.problems.append(
            f"{text}; expected <split>/<class>/*.jpg: move them, or list images, labels and splits"
            f" in a table (csv:PATH). {as_one}"
        )
    else:
        layout.warnings.append(
            f"{text}; their images belong to the class, whatever these folders say. {as_one}"
        )


def _join_doubled(tree: Tree) -> None:
    """Take a folder and the only folder in it as one, where both are called as the same split.

    Archives are often packed like that: `seg_train/seg_train/<class>`.
    """
    inside: dict[str, list[str]] = defaultdict(list)
    for parts in tree.folders:
        if len(parts) == 2:
            inside[parts[0]].append(parts[1])
    with_images = {image.parts[0] for image in tree.images if len(image.parts) == 2}
    meant = _meant([parts[0] for parts in tree.folders if len(parts) == 1])
    doubled = {
        top
        for top, (first, *more) in inside.items()
        if not more and top in meant.keys() - with_images and guess(first)[0] == meant[top]
    }
    tree.folders = [
        _joined(parts, doubled)
        for parts in tree.folders
        if len(parts) != 2 or parts[0] not in doubled
    ]
    tree.images = [image._replace(parts=_joined(image.parts, doubled)) for image in tree.images]


def _joined(parts: Parts, doubled: set[str]) -> Parts:
    return (parts[0], *parts[2:]) if parts[0] in doubled else parts


def _recognise(place: str, tree: Tree, named: Mapping[str, str] | None) -> SourceLayout:
    """Which of the folders at the top of *tree*, which messages call *place*, are splits.

    They are those that are *named*, or those with the usual names if *named* is None.
    """
    tops = [parts[0] for parts in tree.folders if len(parts) == 1]
    inside = [image for image in tree.images if len(image.parts) > 1]
    nested = {parts[0] for parts in tree.folders if len(parts) > 1}
    with_classes = nested | {i.parts[0] for i in inside if i.own_label is not None}
    if named is not None:
        return _as_named(place, tops, with_classes, named) if named else SourceLayout()
    meant = _meant(tops)
    others = [name for name in tops if name not in meant]
    if not meant:
        direct = {i.parts[0] for i in inside if len(i.parts) == 2 and i.own_label is None}
        return SourceLayout(
            problems=_doubtful(place, [name for name in tops if name in nested - direct])
        )
    if not with_classes & set(meant):
        return SourceLayout(problems=[_without_classes(place, meant, others)])
    layout = SourceLayout(skipped=dict.fromkeys(others, "beside the splits"))
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
                layout.skipped[name] = f"folder {name} has no class folders"
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
            f"{place} has {_listed(meant)}, named like a split, among the folders"
            f" {_listed(with_images)}; say {_advice(meant)} to leave the others out, or --split"
            " none if all of them are classes"
        )
    return layout


def _meant(names: Sequence[str]) -> dict[str, str]:
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
            f"{place} has {_listed(meant)}, named like a split but without class folders, among the"
            f" folders {_listed(others)}; say --split none if all of them are classes, or move it"
            " elsewhere"
        )
    return (
        f"{place} has {_listed(meant)}, named like splits but without class folders; expected"
        f" {place}/{next(iter(meant))}/<class>/*.jpg. Say --split none if they are the classes, or"
        " list images and labels in a table (csv:PATH)"
    )


def _as_named(
    place: str, tops: Sequence[str], with_classes: Collection[str], named: Mapping[str, str]
) -> SourceLayout:
    layout = SourceLayout()
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
    """The `--split` option for folders, name -> split."""
    last_of = {split: name for name, split in meant.items()}
    return "--split " + ",".join(f"{split}={name}" for split, name in last_of.items())


def _no_classes(folder: str) -> str:
    return f"{folder} has no class folders; expected {folder}/<class>/*.jpg"


def _listed(names: Iterable[str]) -> str:
    return printable(few_of(list(names)))


def same_name(wanted: str, names: Sequence[str]) -> str | None:
    """The one of *names* that is *wanted*: exactly, or else in another case."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)
