"""Photos for tests of pages: made here, with a bright disc so that they are not alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def write_photo(
    path: Path, *, seed: int = 0, size: tuple[int, int] = (120, 80), orientation: int = 1
) -> Path:
    """*path*, written as the format of its ending. *size* is width and height as stored."""
    width, height = size
    rng = np.random.default_rng(seed)
    centre_x, centre_y, radius = (
        *(rng.random(2) * size),
        0.15 * max(size) * (1 + rng.random()),
    )
    down, right = np.mgrid[0:height, 0:width]
    disc = (right - centre_x) ** 2 + (down - centre_y) ** 2 < radius**2
    colours = rng.integers(0, 256, size=(2, 3))
    pixels_HWC = np.where(disc[..., np.newaxis], colours[0], colours[1]).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels_HWC).save(path, exif=exif)
    return path


def large_jpeg(width: int, height: int) -> bytes:
    """A JPEG of noise, which takes a while to decode."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((width, height)).save(stream, "JPEG", quality=85)
    return stream.getvalue()
