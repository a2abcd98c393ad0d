"""Labelled images from a SOURCE string: `folder:PATH` (a bare path means this), `csv:PATH`,
`tar:PATTERN`, `torchvision:NAME[:ROOT]`, `digits`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.errors import ConfigError, DataError, RequestError
from models.machine import cpu_budget
from models.package.manifest import DataFingerprint, PreprocessSpec
from models.pixels.preprocess import to_pixels
from training.data.layout.names import few_of, printable
from training.data.sources.dataset import Dataset, Example, Unused, by_reason, usage
from training.data.sources.digits import list_digits
from training.data.sources.folder import list_folder
from training.data.sources.listing import Listing, arrange, stratified
from training.data.sources.options import SourceOptions
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
    "fingerprint",
    "fingerprint_of",
    "list_source",
    "load_dataset",
    "readable",
    "stratified",
    "usage",
    "without_unreadable",
]

KINDS: Mapping[str, Callable[[str, SourceOptions], Listing]] = {
    "folder": list_folder,
    "csv": list_table,
    "tar": list_shards,
    "torchvision": lambda rest, options: list_torchvision(rest),
}
"""Kind of source -> what lists it, given what stands behind the colon."""
TAKEN_BY = {"split": ("folder", "csv", "tar"), "path_column": ("csv",), "label_column": ("csv",)}
"""Option -> the kinds of source that take it."""
FILES = {"csv": "labels.csv", "tar": "*.tar"}
"""Kind of source that takes files -> what they may be called."""
VALID_SOURCES = (
    "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a bare path"
)
MAX_UNREADABLE_SHARE = 0.05
AS_USUAL = SourceOptions()


def load_dataset(
    source: str, *, seed: int = 0, to_train: bool = True, options: SourceOptions = AS_USUAL
) -> Dataset:
    """The data set behind *source*; one without splits is split by *seed*, the same share of each
    class. Raises `DataError`.

    To judge a model, and not *to_train* one, a source with `val` or `test` alone will do, and some
    of the classes.
    """
    listing = list_source(source, options)
    dataset = arrange(listing, seed=seed, to_train=to_train, options=options)
    for text in listing.warnings:
        CONSOLE.print(f"[yellow]look at this[/]: {shown(text)}")
    return dataset


def list_source(source: str, options: SourceOptions = AS_USUAL) -> Listing:
    """What *source* holds, whether or not it can be trained on.

    Raises `DataError` if it cannot be found, or is not what it is called.
    """
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"source {printable(source)} is no UTF-8: rename it, or use a link to it"
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


def fingerprint(dataset: Dataset) -> DataFingerprint:
    """What the data set is: a hash over every image's bytes and label in order, and its counts."""
    rows = (
        (split, e.label, hashlib.sha256(e.read()).hexdigest())
        for split, examples in dataset.splits.items()
        for e in examples
    )
    return fingerprint_of(dataset.source, dataset.labels, rows, splits=list(dataset.splits))


def fingerprint_of(
    source: str,
    labels: Sequence[str],
    images: Iterable[tuple[str, int, str]],
    *,
    splits: Sequence[str],
) -> DataFingerprint:
    """As `fingerprint`, of *images* as split, label and SHA-256 of the bytes, those of a split in
    order.
    """
    by_split: dict[str, list[tuple[int, str]]] = {split: [] for split in sorted(splits)}
    for split, label, sha256 in images:
        by_split[split].append((label, sha256))
    digest = hashlib.sha256()
    counts: dict[str, dict[str, int]] = {}
    for split, found in by_split.items():
        counted = Counter(label for label, _ in found)
        counts[split] = {name: counted[index] for index, name in enumerate(labels)}
        for label, sha256 in found:
            digest.update(f"{split}\0{labels[label]}\0".encode())
            digest.update(bytes.fromhex(sha256))
    return DataFingerprint(source=source, sha256=digest.hexdigest(), splits=counts)


def without_unreadable(
    dataset: Dataset, spec: PreprocessSpec, *, most: float = MAX_UNREADABLE_SHARE
) -> tuple[Dataset, dict[str, str]]:
    """The data set without the images that do not decode under *spec*, and the reason for each of
    those by name.

    Raises `DataError` if more than a share of *most*, 0 to 1, is unreadable: then something else is
    wrong.
    """
    judged = {split: readable(examples, spec) for split, examples in dataset.splits.items()}
    bad = {name: reason for _, found in judged.values() for name, reason in found.items()}
    total = sum(len(examples) for examples in dataset.splits.values())
    if len(bad) > most * total:
        name, reason = next(iter(bad.items()))
        raise DataError(
            f"{dataset.source}: {len(bad)} of {total} images cannot be read, such as {name}:"
            f" {reason}. Up to {most:.1%} would be left out (max_unreadable_share); `loupe data"
            " check` lists them all"
        )
    for split, (kept, _) in judged.items():
        left = {example.label for example in kept}
        if lost := [
            dataset.labels[label]
            for label in sorted({e.label for e in dataset.splits[split]} - left)
        ]:
            raise DataError(
                f"{dataset.source}: split {split} has no images of {few_of(lost)} that can be read"
            )
    return replace(dataset, splits={split: kept for split, (kept, _) in judged.items()}), bad


def readable(
    examples: Sequence[Example], spec: PreprocessSpec
) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Those of *examples* that decode under *spec*, in order, and the reason for each of the others
    by name. Pillow releases the GIL.
    """

    def fault(example: Example) -> str | None:
        try:
            to_pixels(example.read(), spec)
        except (RequestError, DataError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, math.ceil(cpu_budget())), thread_name_prefix="read") as pool:
        faults = list(pool.map(fault, examples))
    kept = tuple(
        example for example, reason in zip(examples, faults, strict=True) if reason is None
    )
    return kept, {
        example.name: reason
        for example, reason in zip(examples, faults, strict=True)
        if reason is not None
    }
