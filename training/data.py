"""Labelled images from a SOURCE string: `digits`, or `folder:PATH` (a bare path means this)."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import DataError, RequestError
from models.manifest import DataFingerprint, PreprocessSpec
from models.preprocess import to_pixels

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valid", "validation")
TEST_NAMES = ("test",)
MAX_UNREADABLE_SHARE = 0.05
DIGIT_SIDE_PX = 32
SPLIT_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Of a source that comes in one piece, per class."""
TRAIN_VAL_SHARES = {"train": 0.8, "val": 0.2}
"""Of a source that has a train folder alone, per class."""


@dataclass(frozen=True)
class Example:
    """One encoded image and its class."""

    name: str
    """As a person would look for it: a path relative to the source, or a made name."""
    label: int
    path: Path | None = None
    encoded: bytes | None = None

    def read(self) -> bytes:
        """The encoded image. Raises `DataError` if its file went away."""
        if self.encoded is not None:
            return self.encoded
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Dataset:
    """Images of each split, and the class names in the order that the model will use."""

    source: str
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """`train` and `val`, and `test` where there is one."""

    @property
    def held_out(self) -> str:
        """The split that judges the model: `test`, or `val` where there is none."""
        return "test" if self.splits.get("test") else "val"


def load_dataset(source: str, *, seed: int = 0, to_train: bool = True) -> Dataset:
    """The data set behind *source*; one without splits is split by *seed*, the same share of each class. Raises `DataError`.

    To judge a model, and not *to_train* one, a folder with `val` or `test` alone will do.
    """
    kind, colon, rest = source.partition(":")
    if source == "digits":
        return _digits(seed)
    if colon and kind == "folder":
        return _folder(Path(rest), seed, to_train=to_train)
    # A Windows drive or a path with a colon is still a path.
    if colon and kind.isalpha() and len(kind) > 1 and not Path(source).exists():
        raise DataError(f"source {source}: no kind {kind!r}; valid: digits, folder:PATH, or a bare path")
    return _folder(Path(source), seed, to_train=to_train)


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


def without_unreadable(dataset: Dataset, spec: PreprocessSpec) -> tuple[Dataset, dict[str, str]]:
    """The data set without the images that do not decode under *spec*, and the reason for each of those by name.

    Raises `DataError` if more than one in twenty is unreadable: then something else is wrong.
    """
    judged = {split: readable(examples, spec) for split, examples in dataset.splits.items()}
    bad = {name: reason for _, found in judged.values() for name, reason in found.items()}
    total = sum(len(examples) for examples in dataset.splits.values())
    if len(bad) > MAX_UNREADABLE_SHARE * total:
        name, reason = next(iter(bad.items()))
        raise DataError(f"{dataset.source}: {len(bad)} of {total} images cannot be read, such as {name}: {reason}")
    return _checked(Dataset(dataset.source, dataset.labels, {split: kept for split, (kept, _) in judged.items()})), bad


def readable(examples: Sequence[Example], spec: PreprocessSpec) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Those of *examples* that decode under *spec*, in order, and the reason for each of the others by name."""
    kept: list[Example] = []
    bad: dict[str, str] = {}
    for example in examples:
        try:
            to_pixels(example.read(), spec)
        except RequestError as error:
            bad[example.name] = str(error)
        else:
            kept.append(example)
    return tuple(kept), bad


def _digits(seed: int) -> Dataset:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels of 17 greys, enlarged so that a person can see them."""
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    examples = [
        Example(name=f"digit-{index:04d}.png", label=int(target), encoded=_png(scan.reshape(8, 8)))
        for index, (scan, target) in enumerate(zip(scans, targets, strict=True))
    ]
    return Dataset("digits", tuple(str(digit) for digit in range(10)), stratified(examples, SPLIT_SHARES, seed=seed))


def _png(scan: np.ndarray) -> bytes:
    grey = Image.fromarray((scan * (255.0 / 16.0)).round().astype(np.uint8))
    stream = io.BytesIO()
    grey.resize((DIGIT_SIDE_PX, DIGIT_SIDE_PX), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def _folder(root: Path, seed: int, *, to_train: bool) -> Dataset:
    """`root/train/<class>/*` and `root/val/<class>/*` (and `test`), or `root/<class>/*`, which is then split."""
    if not root.is_dir():
        raise DataError(
            f"data folder {root} does not exist; expected {root}/<class>/*.jpg or {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"
        )
    found = {split: _first_folder(root, names) for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES), ("test", TEST_NAMES))}
    given = {split: folder for split, folder in found.items() if folder is not None}
    if not given:
        return _split_folder(root, seed)
    if to_train and "train" not in given:
        raise DataError(f"{root} has {' and '.join(folder.name for folder in given.values())} but no train folder to train on")
    labels = _class_names(next(iter(given.values())))
    splits = {split: _examples(folder, labels, root) for split, folder in given.items()}
    if "train" in splits and "val" not in splits:
        splits |= _cut(splits["train"], TRAIN_VAL_SHARES, labels, root, seed)
    return _checked(Dataset(f"folder:{root}", labels, splits))


def _split_folder(root: Path, seed: int) -> Dataset:
    labels = _class_names(root)
    return _checked(Dataset(f"folder:{root}", labels, _cut(_examples(root, labels, root), SPLIT_SHARES, labels, root, seed)))


def _cut(examples: Sequence[Example], shares: Mapping[str, float], labels: tuple[str, ...], root: Path, seed: int) -> dict[str, tuple[Example, ...]]:
    counted = Counter(example.label for example in examples)
    few = [f"{label} has {counted[index]}" for index, label in enumerate(labels) if 0 < counted[index] < len(shares)]
    if few:
        raise DataError(f"{root}: {', '.join(few)}; {len(shares)} images or more of each class are needed for {', '.join(shares)}")
    return stratified(examples, shares, seed=seed)


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the class folders. The order is written into the package, so that nobody has to sort again."""
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} class folders ({', '.join(names) or 'none'}); a classifier needs 2 or more, one folder for each class"
        )
    return names


def _examples(folder: Path, labels: tuple[str, ...], root: Path) -> tuple[Example, ...]:
    unknown = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in labels and not path.name.startswith("."))
    if unknown:
        raise DataError(f"{folder} has classes that the training data has not: {', '.join(unknown)}; known: {', '.join(labels)}")
    return tuple(
        Example(name=path.relative_to(root).as_posix(), label=index, path=path)
        for index, label in enumerate(labels)
        for path in sorted((folder / label).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    )


def _hidden(path: Path) -> bool:
    """As `._photo.jpg`, which macOS puts beside each photo of an archive and which is no image."""
    return any(part.startswith(".") for part in path.parts)


def _checked(dataset: Dataset) -> Dataset:
    for split, examples in dataset.splits.items():
        counted = Counter(example.label for example in examples)
        empty = [label for index, label in enumerate(dataset.labels) if not counted[index]]
        if empty:
            endings = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{dataset.source}: split {split} has no images of {', '.join(empty)}; looked for {endings}")
    return dataset


def stratified(examples: Sequence[Example], shares: Mapping[str, float], *, seed: int) -> dict[str, tuple[Example, ...]]:
    """*examples* cut into splits with the given *shares* of each class, the same for the same *seed*; order within a split is kept.

    An image's place follows from its name and not from its neighbours: nearly all images stay in their split when others are added,
    so that a model is not judged on what an earlier one was trained on. A class with an image for each split gets one in each.
    """
    order = sorted(range(len(examples)), key=lambda index: hashlib.sha256(f"{seed}\0{examples[index].name}".encode()).digest())
    chosen: dict[int, str] = {}
    for label in sorted({example.label for example in examples}):
        members = [index for index in order if examples[index].label == label]
        start, reached = 0, 0.0
        for following, (split, share) in zip(range(len(shares) - 1, -1, -1), shares.items(), strict=True):
            reached += share
            end = min(max(round(reached * len(members)), start + 1), len(members) - following)
            chosen |= dict.fromkeys(members[start:end], split)
            start = end
    return {split: tuple(examples[index] for index in range(len(examples)) if chosen[index] == split) for split in shares}
