"""Reads and decodes each image once, and keeps what the checks need.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import (
    DataError,
    EmptyBody,
    ImageTooLarge,
    RequestError,
    TooManyPixels,
    UnsupportedFormat,
)
from models.machine import cpu_budget
from models.package.manifest import ImageFormat, PreprocessSpec
from models.pixels import containers
from models.pixels.preprocess import DEFAULT_DCT_MARGIN, decode
from models.runtime.drift_signals import brightness, sharpness
from training.data.sources.dataset import Example
from training.progress import steps

SPEC = PreprocessSpec(dct_margin=DEFAULT_DCT_MARGIN)
"""Formats and limits of size as in training by default. Its crop says which images are small."""
SMALL_PX = 256
"""Brightness and sharpness are measured at this size: a camera's resolution does not matter."""
THUMB_PX = 16
BLANK_CONTRAST = 1.0
"""Standard deviation of a thumb, of 255, below which there is nothing to compare."""
HASH_PX = 32
HASH_FREQUENCIES = 8
_DCT = np.cos(
    np.pi
    * (2 * np.arange(HASH_PX)[None] + 1)
    * np.arange(HASH_FREQUENCIES)[:, None]
    / (2 * HASH_PX)
)
"""Rows of the DCT-II, not normalised: for the hash only the order of the coefficients counts."""
Fault = str
"""Why an image cannot be trained on: `missing`, `empty`, `huge`, `format` or `damaged`."""
_FAULTS: dict[type[RequestError], Fault] = {
    EmptyBody: "empty",
    ImageTooLarge: "huge",
    TooManyPixels: "huge",
    UnsupportedFormat: "format",
}


@dataclass(frozen=True)
class Picture:
    """What the checks need of a decoded image."""

    width: int
    """In pixels, upright."""
    height: int
    orientation: int
    """As its EXIF says, 1 to 8."""
    hash: int
    """64 bits; see `perceptual_hash`."""
    thumb: NDArray[np.uint8]
    """Luma [16,16]."""
    brightness: float
    sharpness: float

    @property
    def short_px(self) -> int:
        """The shorter side."""
        return min(self.width, self.height)

    @property
    def long_px(self) -> int:
        """The longer side."""
        return max(self.width, self.height)

    @property
    def is_blank(self) -> bool:
        """The picture is one flat colour."""
        return float(self.thumb.std()) < BLANK_CONTRAST


@dataclass(frozen=True)
class Inspected:
    """An inspected image of the data set: a picture, or a fault with its reason."""

    example: Example
    split: str
    sha256: str = ""
    found_format: str | None = None
    """Format of the content, whatever the name says."""
    picture: Picture | None = None
    fault: Fault = ""
    reason: str = ""


def inspect_all(splits: Sequence[tuple[str, Example]]) -> list[Inspected]:
    """The inspection of each (split, example), in order.

    Images are decoded in threads: Pillow releases the GIL.
    """
    with ThreadPoolExecutor(max(1, math.ceil(cpu_budget())), thread_name_prefix="inspect") as pool:
        seen: Iterator[Inspected] = pool.map(lambda item: inspect(item[1], split=item[0]), splits)
        return list(steps(seen, total=len(splits), title="check"))


def inspect(example: Example, *, split: str) -> Inspected:
    """The inspection of *example*. It raises nothing: a fault is part of the answer."""
    try:
        encoded = example.read()
    except DataError as error:
        return Inspected(example, split, fault="missing", reason=str(error))
    sha256, found = hashlib.sha256(encoded).hexdigest(), containers.sniff(encoded)
    try:
        image = decode(encoded, SPEC, crop_share=1.0)
        container = containers.read(encoded, cast("ImageFormat", found))  # `decode` took it
    except RequestError as error:
        fault = _FAULTS.get(type(error), "damaged")
        return Inspected(example, split, sha256, found, fault=fault, reason=str(error))
    return Inspected(example, split, sha256, found, _picture(image, container))


def perceptual_hash(luma_HW: NDArray[np.uint8]) -> int:
    """64 bits: which of the 8x8 lowest frequencies of `uint8 [32,32]` are above their median.

    Another size, compression or brightness of the same photo changes few of them.

    Source: the pHash of C. Zauner, "Implementation and benchmarking of perceptual image hash
    functions", 2010, with the lowest 8x8 frequencies.
    """
    coefficients = (_DCT @ luma_HW.astype(np.float64) @ _DCT.T).ravel()
    return int.from_bytes(np.packbits(coefficients > np.median(coefficients)).tobytes(), "big")


def _picture(image: Image.Image, container: containers.Container) -> Picture:
    luma = image.convert("L")
    small = image.copy()
    small.thumbnail((SMALL_PX, SMALL_PX))
    pixels_HWC = np.asarray(small)
    return Picture(
        # The image may be reduced.
        width=container.height if container.orientation >= 5 else container.width,
        height=container.width if container.orientation >= 5 else container.height,
        orientation=container.orientation,
        hash=perceptual_hash(np.asarray(luma.resize((HASH_PX, HASH_PX), Image.Resampling.BOX))),
        thumb=np.asarray(luma.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)),
        brightness=brightness(pixels_HWC),
        sharpness=sharpness(pixels_HWC),
    )
