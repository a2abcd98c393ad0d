"""From a tree to splits and classes: the same rule for folders and for archives.

`<split>/<class>/...` if folders at the top are called as splits, else `<class>/...`. What lies
deeper in a class folder belongs to the class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from training.data.layout.names import few_of, printable
from training.data.layout.splits import Layout, guess, recognise, split_of, splits_meant
from training.data.layout.tree import Parts, Tree
from training.data.sources.dataset import Unused


def lay_out(tree: Tree, place: str, named: Mapping[str, str] | None) -> Layout:
    """Split and class of each image of *tree*. The splits are those *named*, or have usual names.

    *place* is the source in messages.
    """
    _join_doubled(tree)
    layout = recognise(place, tree, named)
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


def _check_inside(layout: Layout, place: str, inside: Mapping[Parts, set[Parts]]) -> None:
    """Say which folders *inside* class folders are called as splits; those are not at the top."""
    found = sorted(parts for folders in inside.values() for parts in folders)
    # With one class folder alone, its splits are most likely those of the source.
    if not found or len(inside) < 2:
        return
    text = (
        f"{place} has folders called as splits inside its class folders:"
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
    meant = splits_meant([parts[0] for parts in tree.folders if len(parts) == 1])
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
