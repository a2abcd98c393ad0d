"""Small labelled photos for training tests: folders of coloured noise whose class is their colour,
so that a tiny model can tell them apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.source import Dataset, Example

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 50, 40)}
"""Mean RGB of each class, in the order of the sorted names."""
SIDE_PX = 40


def photo(colour: str, seed: int, *, image_format: str = "PNG") -> bytes:
    """An encoded image of *colour* with noise; another *seed* gives another image."""
    rng = np.random.default_rng([seed, list(COLOURS).index(colour)])
    pixels_HWC = np.asarray(COLOURS[colour]) + rng.normal(
        scale=40.0, size=(SIDE_PX, SIDE_PX + 8, 3)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8)).save(stream, image_format)
    return stream.getvalue()


def write_photos(folder: Path, counts: Mapping[str, int], *, first_seed: int = 0) -> Path:
    """*folder*/<colour>/000.png and so on, *counts* of each colour."""
    for colour, count in counts.items():
        (folder / colour).mkdir(parents=True)
        for index in range(count):
            (folder / colour / f"{index:03d}.png").write_bytes(photo(colour, first_seed + index))
    return folder


def in_memory(*, train: int, held_out: int) -> Dataset:
    """A data set of all colours with *train* training images of each, and *held_out* of each for
    `val` and for `test`.
    """
    labels = tuple(COLOURS)
    splits = {}
    for number, (split, count) in enumerate(
        {"train": train, "val": held_out, "test": held_out}.items()
    ):
        splits[split] = tuple(
            Example(
                name=f"{split}/{colour}-{index}.png",
                label=label,
                encoded=photo(colour, 1000 * number + index),
            )
            for label, colour in enumerate(labels)
            for index in range(count)
        )
    return Dataset("memory", labels, splits)
