"""What a source holds, and how a data set with splits is made of it."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from models.errors import DataError
from models.pixels.endings import LISTED
from training.data.layout.names import number, printable
from training.data.layout.splits import SPLIT_NAMES, WHOLE
from training.data.sources.dataset import Dataset, Example, SourceOptions, Unused, usage

SPLIT_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Shares of each class in a source without splits."""
TRAIN_VAL_SHARES = {"train": 0.8, "val": 0.2}
"""Shares of each class in a train split, where there is no split for validation."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds.

    Nothing is decoded, cut or left out yet: `loupe data check` names what training would refuse.
    """

    source: str
    place: str
    """The source as messages name it."""
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """In the order train, val, test; or `WHOLE` alone."""
    unused: tuple[Unused, ...] = ()
    """Every file, folder and row that is not used."""
    problems: tuple[str, ...] = ()
    """Messages: why the source cannot be used."""
    training_problems: tuple[str, ...] = ()
    """Messages: why it cannot be trained on. It may still judge a model."""
    warnings: tuple[str, ...] = ()
    """Messages: what may be intended, but should be checked."""
    split_noun: str = "split"
    by_name: Sequence[tuple[Example, str | None]] = ()
    """Every image, whatever its split, with the label that a table or archive gives it. None where
    its folder, and so its name, says it. Empty if *splits* have all images."""


def arrange(listing: Listing, *, seed: int, to_train: bool, options: SourceOptions) -> Dataset:
    """The data set of *listing*; what has no splits is split by *seed*.

    Raises `DataError` for whatever keeps it from being used.

    *options* are those that it was listed with. To judge a model, and not *to_train* one, some of
    its classes are enough.
    """
    splits = dict(listing.splits)
    problems = (*listing.problems, *(listing.training_problems if to_train else ()))
    if problems:
        raise DataError(printable(problems[0]))
    if to_train and WHOLE not in splits and "train" not in splits:
        raise DataError(
            f"{listing.place} has {' and '.join(splits)} but no train {listing.split_noun} to"
            " train on"
        )
    if WHOLE in splits:
        splits = _cut(listing, splits[WHOLE], SPLIT_SHARES, seed)
    elif "train" in splits and "val" not in splits:
        splits |= _cut(listing, splits["train"], TRAIN_VAL_SHARES, seed)
    dataset = Dataset(listing.source, listing.labels, splits, listing.unused, options)
    if to_train:
        _require_classes(dataset)
    return dataset


def _require_classes(dataset: Dataset) -> None:
    """Raises `DataError` if a split has no image of some class."""
    for split, examples in dataset.splits.items():
        there = {example.label for example in examples}
        if empty := [label for index, label in enumerate(dataset.labels) if index not in there]:
            text = f"{dataset.source}: split {split} has no images of {', '.join(empty)}"
            if dataset.source.startswith(("folder:", "tar:")):
                text += f"; looked for {LISTED}"
            if dataset.unused:
                text += f". {usage(sum(map(len, dataset.splits.values())), dataset.unused)}"
            raise DataError(text)


def stratified(
    examples: Sequence[Example], shares: Mapping[str, float], *, seed: int
) -> dict[str, tuple[Example, ...]]:
    """*examples* in splits with *shares* of each class, by *seed*; order in a split is kept.

    An image's place follows from its name and not from its neighbours: nearly all images stay in
    their split when others are added, so that a model is not judged on what an earlier one was
    trained on. A class with an image for each split gets one in each.
    """
    order = sorted(
        range(len(examples)),
        key=lambda index: hashlib.sha256(f"{seed}\0{examples[index].name}".encode()).digest(),
    )
    by_label: dict[int, list[int]] = {}
    for index in order:
        by_label.setdefault(examples[index].label, []).append(index)
    chosen: dict[int, str] = {}
    for members in by_label.values():
        start = 0
        reached = itertools.accumulate(shares.values())
        for later, split, share in zip(reversed(range(len(shares))), shares, reached, strict=True):
            end = min(max(round(share * len(members)), start + 1), len(members) - later)
            chosen |= dict.fromkeys(members[start:end], split)
            start = end
    return {
        split: tuple(examples[index] for index in range(len(examples)) if chosen[index] == split)
        for split in shares
    }


def by_split(
    images: Iterable[tuple[Example, str | None, str | None]], labels: Sequence[str]
) -> dict[str, tuple[Example, ...]]:
    """The *images*, each with its split and class, in the splits train, val, test or `WHOLE`.

    Those of no class in *labels* are left out.
    """
    places = {label: place for place, label in enumerate(labels)}
    splits: dict[str, list[Example]] = {split: [] for split in (*SPLIT_NAMES, WHOLE)}
    for example, split, label in images:
        if label in places:
            splits[split or WHOLE].append(replace(example, label=places[label]))
    return {split: tuple(found) for split, found in splits.items() if found} or {WHOLE: ()}


def too_few_classes(place: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The problem of a source with less than two classes."""
    text = (
        f"{place} has {number(labels, 'class', 'classes')} ({', '.join(labels) or 'none'}); a"
        " classifier needs 2 or more"
    )
    return (text,) if len(labels) < 2 else ()


def _cut(
    listing: Listing, examples: Sequence[Example], shares: Mapping[str, float], seed: int
) -> dict[str, tuple[Example, ...]]:
    counted = Counter(example.label for example in examples)
    if few := [
        f"{label} has {counted[index]}"
        for index, label in enumerate(listing.labels)
        if 0 < counted[index] < len(shares)
    ]:
        raise DataError(
            f"{listing.place}: {', '.join(few)}; {len(shares)} images or more of each class are"
            f" needed for {', '.join(shares)}"
        )
    return stratified(examples, shares, seed=seed)
