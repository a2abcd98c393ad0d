"""Images that a foreign model is proved and judged on: labelled, unlabelled, or made."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError, RequestError
from models.messages import os_error_text
from models.package.manifest import DataFingerprint, PreprocessSpec
from models.pixels import containers
from models.pixels.preprocess import decode
from training.data.index import require_readable
from training.data.source import Dataset, Example, SourceOptions, list_source, load_dataset
from training.data.sources.dataset import aligned
from training.evaluate.judge import ALL, MAX_UNREADABLE_SHARE, check_classes
from training.progress import CONSOLE, shown

HEAD_BYTES = 64
"""Enough to tell the format."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """What there is to look at."""

    examples: Sequence[Example]
    """Empty: nobody gave any."""
    source: str
    split: str
    labelled: bool

    def fingerprint(self, labels: Sequence[str]) -> DataFingerprint | None:
        """Of the images, in order; None if there are none."""
        if not self.examples:
            return None
        digest, counts = hashlib.sha256(), Counter[str]()
        for example in self.examples:
            label = labels[example.label] if self.labelled else ""
            digest.update(f"{self.split}\0{label}\0".encode())
            digest.update(hashlib.sha256(example.read()).digest())
            counts[label or "not labelled"] += 1
        return DataFingerprint(
            source=self.source, sha256=digest.hexdigest(), splits={self.split: dict(counts)}
        )


NONE = Images(examples=(), source="", split="", labelled=False)


def unlabelled(folder: Path, spec: PreprocessSpec) -> Images:
    """Every image below *folder* that can be read. Raises `DataError` if there is none."""
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise DataError(f"cannot read {os_error_text(error, folder)}") from error
    found = []
    for path in paths:
        example = Example(path.relative_to(folder).as_posix(), 0, path)
        if path.name.startswith(".") or containers.sniff(example.head(HEAD_BYTES)) is None:
            continue
        try:
            decode(example.read(), spec)
        except RequestError as error:
            CONSOLE.print(f"[yellow]left out[/] {shown(f'{example.name}: {error}')}")
            continue
        found.append(example)
    if not found:
        raise DataError(f"{folder} holds no image that can be read; give a folder of photos")
    return Images(examples=found, source=f"folder:{folder}", split=ALL, labelled=False)


def labelled(
    source: str, labels: tuple[str, ...], options: SourceOptions, spec: PreprocessSpec, origin: str
) -> Images:
    """The held-out images of *source*, or all of them where it has no splits.

    Raises `DataError`, also for classes that are not among *labels*; *origin* is the model's name.
    """
    dataset = _judging(source, options)
    check_classes(origin, labels, dataset)
    [(split, examples)] = aligned(dataset, labels).splits.items()
    kept, broken = list[Example](), dict[tuple[str, str], str]()
    for example in examples:
        try:
            decode(example.read(), spec)
        except (RequestError, DataError) as error:
            broken[split, example.name] = str(error)
            CONSOLE.print(f"[yellow]left out[/] {shown(f'{example.name}: {error}')}")
        else:
            kept.append(example)
    require_readable(dataset, broken, most=MAX_UNREADABLE_SHARE)
    return Images(examples=kept, source=dataset.source, split=split, labelled=True)


def _judging(source: str, options: SourceOptions) -> Dataset:
    """The images of *source* that judge, as its one split."""
    listing = list_source(source, options)
    if {"val", "test"} & listing.splits.keys() or listing.problems:
        dataset = load_dataset(source, to_train=False, options=options)
        kept = {dataset.held_out: dataset.splits[dataset.held_out]}
    else:
        kept = {ALL: tuple(one for examples in listing.splits.values() for one in examples)}
    return Dataset(listing.source, listing.labels, kept, listing.unused, options)
