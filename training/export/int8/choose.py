"""Which images calibrate int8 and which judge it: never the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import ConfigError, DataError
from models.package.manifest import PreprocessSpec
from training.data.loader import evaluation_batches, limited
from training.data.source import Dataset, Example
from training.export.int8.candidate import Bench, Candidate
from training.export.int8.search import Found, search

CALIBRATION_IMAGES = 128
LEAST_CALIBRATION_IMAGES = 16
JUDGING_IMAGES = 1000
"""Their pixels are kept for all candidates: 150 KB each at 224 pixels."""
CALIBRATION_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """What a user may choose about the search."""

    accuracy_budget_points: float = 1.0
    """Accuracy that int8 may lose against fp32, in percentage points."""
    time_budget_s: float = 600.0
    """No further candidate is begun after this."""
    calibration_split: str = "train"
    keep_fp32: bool = False
    """Where nothing is inside the budget: a package in fp32 instead of an error."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy_budget_points <= 100.0:
            raise ConfigError(
                f"accuracy budget is {self.accuracy_budget_points} points; expected 0 to 100"
            )
        if not self.time_budget_s >= 0.0:
            raise ConfigError(f"time budget is {self.time_budget_s} s; expected 0 or more")


def find_int8(
    encoded: bytes,
    dataset: Dataset,
    spec: PreprocessSpec,
    options: Int8Options,
    watch: Callable[[Candidate], None],
) -> Found:
    """The search for int8 of the fp32 model *encoded* on the splits of *dataset*.

    Candidates are judged on `val`, so that the images that judge the package choose nothing; where
    `val` calibrates, or is all there is, on the held-out ones. Raises `DataError` for calibration
    images that are too few, of one class, or of the split that judges.
    """
    judging = judging_images(dataset, options.calibration_split)
    # The held-out images judge the package in the end, so they must not calibrate.
    calibration = apart(
        calibration_images(dataset, options.calibration_split), dataset.splits[dataset.held_out]
    )
    return find_on(encoded, calibration, judging, spec, options, watch)


def find_on(
    encoded: bytes,
    calibration: Sequence[Example],
    judging: Sequence[Example],
    spec: PreprocessSpec,
    options: Int8Options,
    watch: Callable[[Candidate], None],
) -> Found:
    """As `find_int8`, with the images chosen. Raises `DataError` likewise."""
    calibration = apart(calibration, judging)
    require_enough(calibration)
    pixels_NHWC = np.concatenate(list(evaluation_batches(judging, spec, 32)))
    labels_N = np.array([example.label for example in judging], dtype=np.int64)
    return search(
        encoded,
        Bench(encoded, pixels_NHWC, labels_N, budget_points=options.accuracy_budget_points),
        lambda: evaluation_batches(calibration, spec, CALIBRATION_BATCH),
        time_budget_s=options.time_budget_s,
        calibration_images=len(calibration),
        watch=watch,
    )


def calibration_images(dataset: Dataset, split: str) -> Sequence[Example]:
    """At most `CALIBRATION_IMAGES` of *split*, evenly over the classes.

    Raises `DataError` if there is no such split.
    """
    if not dataset.splits.get(split):
        raise DataError(
            f"calibration split is {split!r}; {dataset.source} has"
            f" {', '.join(name for name, found in dataset.splits.items() if found)}"
        )
    return limited(dataset.splits[split], CALIBRATION_IMAGES)


def judging_images(dataset: Dataset, calibration_split: str) -> Sequence[Example]:
    """Of `val`, or of the held-out split where `val` calibrates.

    Raises `DataError` for a calibration split that is the held-out one.
    """
    if calibration_split == dataset.held_out:
        raise DataError(
            f"split {calibration_split} of {dataset.source} cannot calibrate int8: it is the one"
            " that judges it; calibrate on train"
        )
    split = "val" if calibration_split != "val" and dataset.splits.get("val") else dataset.held_out
    return limited(dataset.splits[split], JUDGING_IMAGES)


def require_enough(calibration: Sequence[Example]) -> None:
    """Raises `DataError` for calibration images that are too few or of one class."""
    if len(calibration) < LEAST_CALIBRATION_IMAGES:
        raise DataError(
            f"{len(calibration)} calibration images remain without those that judge;"
            f" {LEAST_CALIBRATION_IMAGES} are needed to see how large activations get: add images,"
            " choose another --calibration-split, or export fp32"
        )
    if len({example.label for example in calibration}) == 1:
        raise DataError(
            f"all {len(calibration)} calibration images are of one class: activations that other"
            " classes cause would be cut off. Calibrate on a split with every class"
        )


def apart(calibration: Sequence[Example], judging: Sequence[Example]) -> tuple[Example, ...]:
    """*calibration* without the images that judge, and without copies of them.

    What judges must not have been seen.
    """
    judged = {hashlib.sha256(example.read()).digest() for example in judging}
    return tuple(
        example for example in calibration if hashlib.sha256(example.read()).digest() not in judged
    )
