"""Accuracy on parts of the images: small and large, dark and bright, blurred and sharp, rotated by
EXIF and not.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import ImageFormat, Interval
from models.pixels import containers
from training.data.source import Example
from training.evaluate.metrics import binomial_at_most, wilson
from training.evaluate.predict import Answers

THIRDS = {
    "size": ("smallest", "middle", "largest"),
    "brightness": ("darkest", "middle", "brightest"),
    "sharpness": ("most blurred", "middle", "sharpest"),
}


@dataclass(frozen=True)
class Slice:
    """The images that have something in common."""

    by: str
    """`size`, `brightness`, `sharpness` or `exif`."""
    name: str
    low: float | None
    """Least value in it: pixels of the encoded image, or 0 to 1; None for `exif`."""
    high: float | None
    count: int
    accuracy: Interval
    weak: bool
    """Whether the whole interval lies below the accuracy over all images."""


@dataclass(frozen=True)
class Slices:
    """Every slice that was looked at, none left out for its result."""

    slices: tuple[Slice, ...]
    alike: tuple[str, ...]
    """Properties that all images share, so that there is nothing to compare."""

    by_chance: float
    """How many weak slices a model that is equally good everywhere would show on average."""


def sliced(answers: Answers) -> Slices:
    """Thirds by size of the encoded image, by brightness and sharpness of what the model sees, and
    the EXIF-rotated against the others.
    """
    pixels_N, rotated_N = _origins(answers.examples)
    values = {
        "size": pixels_N,
        "brightness": np.asarray(answers.brightness_N),
        "sharpness": np.asarray(answers.sharpness_N),
    }
    groups = {by: _thirds(values_N, THIRDS[by]) for by, values_N in values.items()}
    groups["exif"] = [
        (name, chosen_N)
        for name, chosen_N in (("rotated", rotated_N), ("not rotated", ~rotated_N))
        if chosen_N.any()
    ]
    overall = float(answers.correct_N.mean())
    found = []
    for by, parts in groups.items():
        for name, chosen_N in parts if len(parts) > 1 else []:
            accuracy = wilson(int(answers.correct_N[chosen_N].sum()), int(chosen_N.sum()))
            low, high = (
                float(bound(values[by][chosen_N])) if by in values else None
                for bound in (np.min, np.max)
            )
            found.append(
                Slice(by, name, low, high, int(chosen_N.sum()), accuracy, accuracy.high < overall)
            )
    by_chance = sum(_mark_by_chance(part.count, overall) for part in found)
    return Slices(
        tuple(found), tuple(by for by, parts in groups.items() if len(parts) < 2), by_chance
    )


def _mark_by_chance(count: int, accuracy: float) -> float:
    """How likely *count* images that are each right with probability *accuracy* make a weak slice.

    More likely the fewer they are.
    """
    enough = bisect.bisect_left(
        range(count + 1), accuracy, key=lambda hits: wilson(hits, count).high
    )
    return binomial_at_most(enough - 1, count, accuracy)


def _thirds(
    values_N: NDArray[np.float64], names: tuple[str, str, str]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Images by terciles of their value.

    Equal values stay together, so that thirds may be unequal and one may be missing.
    """
    edges = np.quantile(values_N, [1 / 3, 2 / 3], method="lower")
    third_N = np.searchsorted(edges, values_N, side="left")
    return [(names[third], third_N == third) for third in np.unique(third_N)]


def _origins(examples: Sequence[Example]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Width times height [N] of each encoded image, and whether its EXIF orientation turns or
    mirrors it, from the headers alone.
    """
    headers = [_header(example.read()) for example in examples]
    return np.array([width * height for width, height, _ in headers], dtype=np.float64), np.array(
        [turn > 1 for *_, turn in headers]
    )


def _header(encoded: bytes) -> tuple[int, int, int]:
    """Width and height in pixels as stored, and EXIF orientation."""
    found = containers.sniff(encoded)
    image_format: ImageFormat = next(name for name in get_args(ImageFormat) if name == found)
    container = containers.read(encoded, image_format)
    return container.width, container.height, container.orientation
