"""From a tree to splits and classes: the same rule for folders and for archives.

`<split>/<class>/...` if folders at the top are called as splits, else `<class>/...`. What lies
deeper in a class folder belongs to the class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from training.data.layout.names import few_of, printable
from training.data.layout.splits import Recognised, Shape, guess, recognise, split_of
from training.data.layout.tree import Found, Parts, Tree
from training.data.sources.dataset import Unused


class Placed(NamedTuple):
    """An image with its place in the data set."""

    found: Found
    split: str | None
    """None if no folder says."""
    label: str | None
    """None if it lies in no class folder and has no label of its own."""


@dataclass
class Layout:
    """Every image of a tree: placed, or unused with the reason."""

    folders: Mapping[str, Parts]
    """Split -> its folder."""
    placed: list[Placed] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def classes(self, tree: Tree, split: str) -> list[str]:
        """The class folders of *split*, with images or without; of the whole tree if it has no
        splits.
        """
        above = self.folders.get(split, ())
        return [parts[-1] for parts in tree.folders if parts[:-1] == above]


def lay_out(tree: Tree, place: str, named: Mapping[str, str] | None) -> Layout:
    """Where each image of *tree* belongs, if its splits are those *named*, or have the usual names.

    *place* is for messages.
    """
    inner = _doubled(tree)
    recognised = recognise(place, _shapes(tree, inner), named)
    layout = Layout(
        {split: (name, *inner.get(name, ())) for split, name in recognised.splits.items()},
        problems=recognised.problems,
    )
    with_labels = {found.parts[:-1] for found in tree.images if found.own is not None}
    inside: dict[Parts, dict[Parts, None]] = defaultdict(dict)
    for found in tree.images:
        rest = _place(
            layout, recognised, found, inner, beside_labelled=found.parts[:-1] in with_labels
        )
        if len(rest) > 1:
            below = found.parts[: len(found.parts) - len(rest) + 1]
            inside[below] |= (
                {found.parts[: len(below) + 1]: None} if len(rest) > 2 and split_of(rest[1]) else {}
            )
    if named != {}:
        _judge_inside(layout, place, inside)
    return layout


def _judge_inside(layout: Layout, place: str, inside: Mapping[Parts, Collection[Parts]]) -> None:
    """Class folders, with the folders in them that are called as splits, are mixed up by a rule
    that looks for splits at the top.
    """
    found = [parts for folders in inside.values() for parts in folders]
    # With one class folder alone, its splits are most likely those of the source.
    if not found or len(inside) < 2:
        return
    told = (
        f"{place} has folders called as splits inside its class folders:"
        f" {printable(few_of(['/'.join(parts) for parts in found]))}"
    )
    as_one = "--split none takes what is in a class folder as one class"
    if (
        not layout.folders
        and all(inside.values())
        and len({split_of(parts[-1]) for parts in found}) > 1
    ):
        move = (
            "expected <split>/<class>/*.jpg: move them, or list images, labels and splits in a"
            " table (csv:PATH)"
        )
        layout.problems.append(f"{told}; {move}. {as_one}")
    else:
        layout.warnings.append(
            f"{told}; their images belong to the class, whatever these folders say. {as_one}"
        )


def _place(
    layout: Layout,
    recognised: Recognised,
    found: Found,
    inner: Mapping[str, Parts],
    *,
    beside_labelled: bool,
) -> Parts:
    """Put *found* in its place, and return what of its path says its class; nothing if that is told
    by another file.
    """
    top = found.parts[0] if len(found.parts) > 1 else ""
    if top in recognised.left_alone:
        layout.unused.append(Unused(found.content.name, recognised.left_alone[top], found.content))
        return ()
    split = next((split for split, name in recognised.splits.items() if name == top), None)
    rest = _below(found.parts, inner) if split else found.parts
    # The last part is the file's name. Where other images of a folder have labels of their own, the
    # folder is no class.
    by_folder = not beside_labelled and len(rest) > 1 and (split or not recognised.splits)
    layout.placed.append(
        Placed(found, split, found.own if found.own is not None else rest[0] if by_folder else None)
    )
    return rest if by_folder else ()


def _doubled(tree: Tree) -> dict[str, Parts]:
    """Folder -> the only folder in it, where that is called as the same split: archives are often
    packed as `seg_train/seg_train/<class>`.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for parts in tree.folders:
        if len(parts) == 2:
            inside[parts[0]].add(parts[1])
    with_images = {found.parts[0] for found in tree.images if len(found.parts) == 2}
    return {
        top: (next(iter(names)),)
        for top, names in inside.items()
        if len(names) == 1
        and top not in with_images
        and guess(top)[0]
        and guess(top)[0] == guess(next(iter(names)))[0]
    }


def _below(parts: Parts, inner: Mapping[str, Parts]) -> Parts:
    """*parts* without the split's folder."""
    return parts[2:] if parts[0] in inner and parts[1:2] == inner[parts[0]] else parts[1:]


def _shapes(tree: Tree, inner: Mapping[str, Parts]) -> dict[str, Shape]:
    """The folders at the top of *tree*."""
    counts = {parts[0]: [0, 0, 0, 0] for parts in tree.folders if len(parts) == 1}
    for parts in tree.folders:
        counts[parts[0]][2] += len(parts) > 1 and len(_below(parts, inner)) == 1
    for found in tree.images:
        if len(found.parts) > 1:
            counted = counts[found.parts[0]]
            counted[0] += found.own is None and len(_below(found.parts, inner)) == 1
            counted[1] += found.own is not None
            counted[3] += 1
    return {name: Shape(*counted) for name, counted in counts.items()}
