"""Labelled images from a SOURCE string: `folder:PATH` (a bare path means this), `csv:PATH`, `tar:PATTERN`, `torchvision:NAME[:ROOT]`, `digits`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.errors import DataError, RequestError
from models.machine import cpu_budget
from models.manifest import DataFingerprint, PreprocessSpec
from models.preprocess import to_pixels
from training.sources.dataset import Dataset, Example
from training.sources.digits import list_digits
from training.sources.folder import list_folder
from training.sources.listing import Listing, arrange, checked, stratified
from training.sources.shards import list_shards
from training.sources.table import list_table
from training.sources.torchvision import list_torchvision

__all__ = [
    "Dataset",
    "Example",
    "at_places",
    "fingerprint",
    "list_source",
    "load_dataset",
    "places_left",
    "readable",
    "stratified",
    "without_unreadable",
]

KINDS: Mapping[str, Callable[[str], Listing]] = {
    "folder": list_folder,
    "csv": list_table,
    "tar": list_shards,
    "torchvision": list_torchvision,
}
"""Kind of source -> what lists it, given what stands behind the colon."""
VALID_SOURCES = "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a bare path"
MAX_UNREADABLE_SHARE = 0.05


def load_dataset(source: str, *, seed: int = 0, to_train: bool = True) -> Dataset:
    """The data set behind *source*; one without splits is split by *seed*, the same share of each class. Raises `DataError`.

    To judge a model, and not *to_train* one, a source with `val` or `test` alone will do.
    """
    return arrange(list_source(source), seed=seed, to_train=to_train)


def list_source(source: str) -> Listing:
    """What *source* holds, whether or not it can be trained on. Raises `DataError` if it cannot be found, or is not what it is called."""
    if source == "digits":
        return list_digits()
    kind, colon, rest = source.partition(":")
    if colon and kind in KINDS:
        return KINDS[kind](rest)
    # A Windows drive or a path with a colon is still a path.
    if colon and kind.isalpha() and len(kind) > 1 and not Path(source).exists():
        raise DataError(f"source {source}: no kind {kind!r}; valid: {VALID_SOURCES}")
    return list_folder(source)


def fingerprint(dataset: Dataset) -> DataFingerprint:
    """What the data set is: a hash over every image's bytes and label in order, and its counts."""
    digest = hashlib.sha256()
    counts: dict[str, dict[str, int]] = {}
    for split, examples in sorted(dataset.splits.items()):
        counted = Counter(example.label for example in examples)
        counts[split] = {label: counted[index] for index, label in enumerate(dataset.labels)}
        for example in examples:
            digest.update(f"{split}\0{dataset.labels[example.label]}\0".encode())
            digest.update(hashlib.sha256(example.read()).digest())
    return DataFingerprint(source=dataset.source, sha256=digest.hexdigest(), splits=counts)


def without_unreadable(dataset: Dataset, spec: PreprocessSpec, *, most: float = MAX_UNREADABLE_SHARE) -> tuple[Dataset, dict[str, str]]:
    """The data set without the images that do not decode under *spec*, and the reason for each of those by name.

    Raises `DataError` if more than a share of *most*, 0 to 1, is unreadable: then something else is wrong.
    """
    judged = {split: readable(examples, spec) for split, examples in dataset.splits.items()}
    bad = {name: reason for _, found in judged.values() for name, reason in found.items()}
    total = sum(len(examples) for examples in dataset.splits.values())
    if len(bad) > most * total:
        name, reason = next(iter(bad.items()))
        raise DataError(
            f"{dataset.source}: {len(bad)} of {total} images cannot be read, such as {name}: {reason}. Up to {most:.1%} would be left out "
            "(max_unreadable_share); `loupe data check` lists them all"
        )
    return checked(Dataset(dataset.source, dataset.labels, {split: kept for split, (kept, _) in judged.items()})), bad


def places_left(whole: Dataset, kept: Dataset) -> dict[str, list[int]]:
    """Where the images of *kept*, which come from *whole* and stand in its order, stand there, by split."""
    found = {}
    for split, examples in whole.splits.items():
        rest = iter(enumerate(examples))
        found[split] = [next(place for place, example in rest if example is wanted) for wanted in kept.splits[split]]
    return found


def at_places(whole: Dataset, places: Mapping[str, Sequence[int]]) -> Dataset:
    """The images of *whole* at *places* of each split."""
    return Dataset(whole.source, whole.labels, {split: tuple(whole.splits[split][place] for place in chosen) for split, chosen in places.items()})


def readable(examples: Sequence[Example], spec: PreprocessSpec) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Those of *examples* that decode under *spec*, in order, and the reason for each of the others by name. Pillow releases the GIL."""

    def fault(example: Example) -> str | None:
        try:
            to_pixels(example.read(), spec)
        except RequestError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, math.ceil(cpu_budget())), thread_name_prefix="read") as pool:
        faults = list(pool.map(fault, examples))
    kept = tuple(example for example, reason in zip(examples, faults, strict=True) if reason is None)
    return kept, {example.name: reason for example, reason in zip(examples, faults, strict=True) if reason is not None}
