"""Accuracy on parts of the images, such as the small, the dark or the blurred ones."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import ImageFormat, Interval
from models.pixels import containers
from models.pixels.containers import Container
from training.evaluate.metrics import binomial_at_most, wilson
from training.evaluate.predictions import Predictions

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


def sliced(found: Predictions) -> Slices:
    """Thirds by size, brightness and sharpness, and the EXIF-rotated images against the others.

    The size is that of the encoded image; brightness and sharpness are those of what the model
    sees.
    """
    headers = [_header(example.read()) for example in found.examples]
    rotated_N = np.array([header.orientation > 1 for header in headers])
    values = {
        "size": np.array([header.width * header.height for header in headers], dtype=np.float64),
        "brightness": np.asarray(found.brightness_N),
        "sharpness": np.asarray(found.sharpness_N),
    }
    groups = {by: _thirds(values_N, THIRDS[by]) for by, values_N in values.items()}
    groups["exif"] = {"rotated": rotated_N, "not rotated": ~rotated_N}
    overall = float(found.correct_N.mean())
    alike, slices = [], []
    for by, parts in groups.items():
        filled = {name: chosen_N for name, chosen_N in parts.items() if chosen_N.any()}
        if len(filled) < 2:
            alike.append(by)
            continue
        for name, chosen_N in filled.items():
            count = int(chosen_N.sum())
            accuracy = wilson(int(found.correct_N[chosen_N].sum()), count)
            low, high = (
                float(bound(values[by][chosen_N])) if by in values else None
                for bound in (np.min, np.max)
            )
            weak = accuracy.high < overall
            slices.append(Slice(by, name, low, high, count, accuracy, weak))
    by_chance = sum(_mark_by_chance(part.count, overall) for part in slices)
    return Slices(tuple(slices), tuple(alike), by_chance)


def _mark_by_chance(count: int, accuracy: float) -> float:
    """Probability that *count* images, each right at a rate of *accuracy*, make a weak slice."""
    enough = bisect.bisect_left(
        range(count + 1), accuracy, key=lambda hits: wilson(hits, count).high
    )
    return binomial_at_most(enough - 1, count, accuracy)


def _thirds(
    values_N: NDArray[np.float64], names: tuple[str, str, str]
) -> dict[str, NDArray[np.bool_]]:
    """Images by terciles of their value.

    Equal values stay together, so that thirds may be unequal and one may be empty.
    """
    edges = np.quantile(values_N, [1 / 3, 2 / 3], method="lower")
    third_N = np.searchsorted(edges, values_N, side="left")
    return {name: third_N == third for third, name in enumerate(names)}


def _header(encoded: bytes) -> Container:
    """What the headers of *encoded* say: the size as stored, and the EXIF orientation."""
    found = containers.sniff(encoded)
    return containers.read(encoded, next(name for name in get_args(ImageFormat) if name == found))
