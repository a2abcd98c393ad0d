"""Data sets from a SOURCE string.

A SOURCE is `folder:PATH` (a bare path means this), `csv:PATH`, `tar:PATTERN`,
`torchvision:NAME[:ROOT]` or `digits`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.errors import ConfigError, DataError
from training.data.index import IndexedImage
from training.data.layout.names import printable
from training.data.layout.splits import WHOLE
from training.data.sources.dataset import (
    Dataset,
    Example,
    SourceOptions,
    Unused,
    by_reason,
    usage,
)
from training.data.sources.digits import list_digits
from training.data.sources.folder import list_folder
from training.data.sources.listing import Listing, arrange, stratified
from training.data.sources.shards import list_shards
from training.data.sources.table import list_table
from training.data.sources.torchvision import list_torchvision
from training.progress import CONSOLE, shown

__all__ = [
    "Dataset",
    "Example",
    "SourceOptions",
    "Unused",
    "by_reason",
    "list_source",
    "load_dataset",
    "stratified",
    "usage",
]

KINDS: Mapping[str, Callable[[str, SourceOptions], Listing]] = {
    "folder": list_folder,
    "csv": list_table,
    "tar": list_shards,
    "torchvision": lambda rest, options: list_torchvision(rest),
}
"""Kind of source -> the function that lists it, given the text behind the colon."""
TAKEN_BY = {"split": ("folder", "csv", "tar"), "path_column": ("csv",), "label_column": ("csv",)}
"""Option -> the kinds of source that take it."""
FILES = {"csv": "labels.csv", "tar": "*.tar"}
"""Kind of source that takes files -> an example of a file name."""
VALID_SOURCES = (
    "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a bare path"
)
AS_USUAL = SourceOptions()
OTHER_CLASS = -1
"""Label of an image that is in no class of the run."""


def load_dataset(
    source: str, *, seed: int = 0, to_train: bool = True, options: SourceOptions = AS_USUAL
) -> Dataset:
    """The data set of *source*. Raises `DataError`.

    A source without splits is split by *seed*, with the same share of each class. To judge a model,
    and not *to_train* one, `val` or `test` alone will do, and some of the classes.
    """
    listing = list_source(source, options)
    dataset = arrange(listing, seed=seed, to_train=to_train, options=options)
    for text in listing.warnings:
        CONSOLE.print(f"[yellow]look at this[/]: {shown(text)}")
    return dataset


def list_source(source: str, options: SourceOptions = AS_USUAL) -> Listing:
    """The images and other files of *source*, whether or not it can be trained on.

    Raises `DataError` if it cannot be found, or is not what it is called.
    """
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"source {printable(source)} is not UTF-8: rename it, or use a link to it"
        ) from error
    kind, colon, rest = source.partition(":")
    if not source.strip() or (kind in KINDS and colon and not rest.strip()):
        raise DataError(f"source {source!r} names nothing; valid: {VALID_SOURCES}")
    if colon and kind in FILES and os.path.isdir(rest):  # noqa: PTH112 - Path.is_dir raises for long names
        raise DataError(
            f"{source} is a folder; give a file in it, such as {kind}:{Path(rest) / FILES[kind]},"
            f" or folder:{rest} for its class folders"
        )
    if source == "digits":
        kind, listed = source, list_digits
    elif colon and kind in KINDS:
        listed = partial(KINDS[kind], rest, options)
    # A Windows drive or a path with a colon is still a path.
    elif colon and kind.isalpha() and len(kind) > 1 and not os.path.exists(source):  # noqa: PTH110 - Path.exists raises for long names
        raise DataError(f"source {source}: no kind {kind!r}; valid: {VALID_SOURCES}")
    else:
        kind, listed = "folder", partial(list_folder, source, options)
    for option, kinds in TAKEN_BY.items():
        if getattr(options, option) is not None and kind not in kinds:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for {', '.join(kinds)} sources, and {source} is"
                " none"
            )
    return listed()


def list_again(
    source: str,
    begun: Sequence[IndexedImage],
    labels: Sequence[str],
    options: SourceOptions = AS_USUAL,
) -> Dataset:
    """All images of *source* in one split, with the *labels* of a run that *begun* lists.

    Layout and completeness are not checked: only the images of the run matter. Raises `DataError`
    if *source* cannot be found or read.
    """
    listing = list_source(source, options)
    own = {entry.name: entry.label for entry in begun}
    places = {label: place for place, label in enumerate(labels)}
    images = listing.by_name or [
        (example, listing.labels[example.label])
        for found in listing.splits.values()
        for example in found
    ]
    examples = tuple(
        replace(
            example,
            label=(
                own.get(example.name, OTHER_CLASS)
                if label is None
                else places.get(label, OTHER_CLASS)
            ),
        )
        for example, label in images
    )
    unused = tuple(entry for entry in listing.unused if entry.name not in own)
    return Dataset(listing.source, tuple(labels), {WHOLE: examples}, unused, options)


def tell_added(begun: Sequence[IndexedImage], dataset: Dataset, unused: Iterable[str] = ()) -> None:
    """Say how many images *dataset* has that are not among those *begun* lists, nor *unused*."""
    known = Counter([*(entry.name for entry in begun), *unused])
    now = Counter(example.name for examples in dataset.splits.values() for example in examples)
    if new := sorted((now - known).elements()):
        CONSOLE.print(
            f"[yellow]added since the run began, and ignored: {len(new)}[/], such as"
            f" {shown(new[0])}"
        )


def tell_used(dataset: Dataset, unreadable: Mapping[str, str], *, see: str) -> None:
    """Say how many images of *dataset* are used, and which are left out; *see* has the lists."""
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {shown(f'{name}: {reason}')}")
    said = usage(sum(map(len, dataset.splits.values())), dataset.unused, unreadable=len(unreadable))
    CONSOLE.print(shown(f"{said}; see {see}" if unreadable or dataset.unused else said))
