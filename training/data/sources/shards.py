"""`tar:PATTERN`: shards as WebDataset writes them, or folders that were packed.

Nothing is extracted: images are read in place.

PATTERN is a path with the wildcards `*`, `?`, `[...]` and `**`, with `{a,b}` for either and
`{000..009}` for a range of numbers.

An image is a member whose name ends as an image's does. Its class is in a member beside it with
the same key: `<key>.cls`, else the label in `<key>.json`, else `<key>.txt`. The key is the name up
to its first dot. A member that differs from the image only in the last ending comes first. Without
any of these, folders give splits and classes as in `folder:`, below the one folder that all members
may lie in. Where no folder gives a split, the shard's file name does (`imagenet-train-0001.tar`),
else the shard's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.errors import DataError
from models.pixels.endings import LISTED
from training.data.layout.names import class_order, few_of, number, printable
from training.data.layout.splits import SourceLayout, guess, lay_out, same_name, split_of
from training.data.layout.tree import FoundImage, Tree
from training.data.sources.archive import read_shard
from training.data.sources.dataset import SourceOptions, Unused
from training.data.sources.listing import Listing, by_split, too_few_classes
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
    tree.folders = sorted({i.parts[:end] for i in tree.images for end in range(1, len(i.parts))})
    tops = [parts[0] for parts in tree.folders if len(parts) == 1]
    named = options.split
    folders = named and {split: name for split, name in named.items() if same_name(name, tops)}
    layout = lay_out(tree, place, folders)
    placed = [
        image._replace(split=image.split or _split_of(image.content.path, named))
        for image in layout.placed
    ]
    left_out = [image.content for image in placed if named and image.split is None]
    placed = [image for image in placed if image.split or not named]
    labels = class_order({image.label for image in placed if image.label is not None})
    return Listing(
        source=place,
        place=place,
        labels=labels,
        splits=by_split(((i.content, i.split, i.label) for i in placed), labels),
        unused=(
            *tree.unused,
            *layout.unused,
            *(Unused(content.name, "not named by --split", content) for content in left_out),
        ),
        problems=tuple(_problems(place, layout, placed, named or {})),
        training_problems=too_few_classes(place, labels),
        warnings=tuple(layout.warnings),
        by_name=[
            (i.content, None if i.own_label is None else printable(i.own_label))
            for i in tree.images
        ],
    )


def _unwrapped(images: list[FoundImage]) -> list[FoundImage]:
    """*images* without the one folder around all of them, unless it is named like a split."""
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


def _split_of(shard: Path | None, named: Mapping[str, str] | None) -> str | None:
    """The split that the name of the *shard*, or else of its folder, tells."""
    assert shard is not None
    if named is None:
        return guess(shard.stem)[0] or split_of(shard.parent.name)
    words = [shard.stem, shard.parent.name, *re.split(r"[\W_]+", shard.stem)]
    return next((split for split, name in named.items() if same_name(name, words)), None)


def _problems(
    place: str, layout: SourceLayout, placed: list[FoundImage], named: Mapping[str, str]
) -> Iterator[str]:
    found = {image.split for image in placed}
    for split, name in named.items():
        if split not in found:
            yield f"{place} has no folder and no shard {name} with images (--split {split}={name})"
    yield from layout.problems
    if not placed:
        yield f"{place} holds no images; looked for {LISTED}"
    if unlabelled := [image.content.name for image in placed if image.label is None]:
        yield (
            f"{place} has {number(unlabelled, 'image')} without a class: {few_of(unlabelled)}; "
            "expected <key>.cls, a label in <key>.json, or a class folder"
        )
    loose = [image.content.name for image in placed if image.split is None]
    if 0 < len(loose) < len(placed):
        yield (
            f"{place} has {number(loose, 'image')} without a split, while others have one:"
            f" {few_of(loose)}"
        )
