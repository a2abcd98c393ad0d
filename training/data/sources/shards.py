"""`tar:PATTERN`: shards as WebDataset writes them, or folders that were packed.

Nothing is extracted: images are read in place.

PATTERN is a path with the wildcards `*`, `?`, `[...]` and `**`, with `{a,b}` for either and
`{000..009}` for a range of numbers.

An image is a member whose name ends as an image's does. Its class stands in a member beside it with
the same key: `<key>.cls`, else the label in `<key>.json`, else `<key>.txt`. The key is the name up
to its first dot; a member that is called as the image but for the last ending comes first. Without
any of these, folders give splits and classes as in `folder:`, below the one folder that all members
may lie in. Where no folder gives a split, the shard's file name does (`imagenet-train-0001.tar`),
else the shard's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from models.errors import DataError
from models.pixels.endings import LISTED
from training.data.layout.layout import Layout, Placed, lay_out
from training.data.layout.names import class_order, few_of, number, printable
from training.data.layout.splits import WHOLE, guess, same_name, split_of
from training.data.layout.tree import Found, Tree, folders_of
from training.data.sources.archive import TarMember
from training.data.sources.dataset import Example, Unused
from training.data.sources.listing import Listing, in_split_order, too_few_classes
from training.data.sources.members import read_shard
from training.data.sources.options import SourceOptions
from training.data.sources.patterns import matching, names_of


def list_shards(pattern: str, options: SourceOptions) -> Listing:
    """What the shards of *pattern* hold.

    Raises `DataError` if there are none, or one cannot be read.
    """
    place = f"tar:{pattern}"
    shards = matching(pattern)
    if not shards:
        raise DataError(
            f"{place}: no file matches; expected shards such as tar:shards/{{train,val}}-*.tar"
        )
    tree = Tree()
    for shard, name in zip(shards, names_of(shards), strict=True):
        read_shard(tree, shard, name)
    tree.images = _unwrapped(tree.images)
    tree.folders = sorted(folders_of(tree.images))
    tops = [parts[0] for parts in tree.folders if len(parts) == 1]
    folders = options.split and {
        split: name for split, name in options.split.items() if same_name(name, tops)
    }
    layout = lay_out(tree, place, folders)
    placed = [
        image if image.split else image._replace(split=_split_of(_shard(image), options.split))
        for image in layout.placed
    ]
    left, placed = (
        _not_named(placed, options.split),
        [image for image in placed if not _is_left(image, options.split)],
    )
    labels = class_order({printable(image.label) for image in placed if image.label is not None})
    return Listing(
        source=place,
        place=place,
        labels=labels,
        splits=_examples(placed, labels),
        unused=(*tree.unused, *layout.unused, *left),
        problems=(*_not_found(place, placed, options.split), *_problems(place, layout, placed)),
        training_problems=too_few_classes(place, labels),
        warnings=tuple(layout.warnings),
        by_name=lambda: (
            (found.content, None if found.own is None else printable(found.own))
            for found in tree.images
        ),
    )


def _unwrapped(images: list[Found]) -> list[Found]:
    """*images* without the one folder in which all of them lie, unless it is called as a split:
    archives are packed like that.
    """
    tops = {found.parts[0] if len(found.parts) > 1 else "" for found in images}
    # Two folders deep or more: else it would be the class folder.
    while (
        len(tops) == 1
        and all(len(found.parts) > 2 for found in images)
        and not split_of(next(iter(tops)))
    ):
        images = [found._replace(parts=found.parts[1:]) for found in images]
        tops = {found.parts[0] for found in images}
    return images


def _shard(image: Placed) -> Path:
    assert isinstance(image.found.content.reader, TarMember)
    return image.found.content.reader.shard


def _split_of(shard: Path, named: Mapping[str, str] | None) -> str | None:
    """The split that the shard's name, or else its folder's, tells."""
    if named is None:
        return guess(shard.stem)[0] or split_of(shard.parent.name)
    words = [shard.stem, shard.parent.name, *re.split(r"[\W_]+", shard.stem)]
    return next((split for split, name in named.items() if same_name(name, words)), None)


def _is_left(image: Placed, named: Mapping[str, str] | None) -> bool:
    return bool(named) and image.split is None


def _not_named(placed: list[Placed], named: Mapping[str, str] | None) -> list[Unused]:
    return [
        Unused(image.found.content.name, "not named by --split", image.found.content)
        for image in placed
        if _is_left(image, named)
    ]


def _not_found(place: str, placed: list[Placed], named: Mapping[str, str] | None) -> list[str]:
    found = {image.split for image in placed}
    absent = {split: name for split, name in (named or {}).items() if split not in found}
    return [
        f"{place} has no folder and no shard {name} with images (--split {split}={name})"
        for split, name in absent.items()
    ]


def _examples(placed: list[Placed], labels: tuple[str, ...]) -> dict[str, tuple[Example, ...]]:
    index_of = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Example]] = {}
    for (_, content, _), split, label in placed:
        if label is not None:
            example = Example(
                name=content.name, label=index_of[printable(label)], reader=content.reader
            )
            splits.setdefault(split or WHOLE, []).append(example)
    return in_split_order(splits) or {WHOLE: ()}


def _problems(place: str, layout: Layout, placed: list[Placed]) -> list[str]:
    problems = list(layout.problems)
    if not placed:
        problems.append(f"{place} holds no images; looked for {LISTED}")
    if unlabelled := [image.found.content.name for image in placed if image.label is None]:
        problems.append(
            f"{place} has {number(unlabelled, 'image')} without a class: {few_of(unlabelled)}; "
            "expected <key>.cls, a label in <key>.json, or a class folder"
        )
    loose = [image.found.content.name for image in placed if image.split is None]
    if loose and len(loose) < len(placed):
        problems.append(
            f"{place} has {number(loose, 'image')} without a split, while others have one:"
            f" {few_of(loose)}"
        )
    return problems
