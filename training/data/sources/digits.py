"""`digits`: images inside scikit-learn, to try the whole chain without a download."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from training.data.layout.splits import WHOLE
from training.data.sources.dataset import Example
from training.data.sources.listing import Listing

DIGIT_SIDE_PX = 32


def list_digits() -> Listing:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels of 17 greys, enlarged."""
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    examples = tuple(
        Example(name=f"digit-{index:04d}.png", label=int(target), encoded=_png(scan.reshape(8, 8)))
        for index, (scan, target) in enumerate(zip(scans, targets, strict=True))
    )
    return Listing(
        source="digits",
        place="digits",
        labels=tuple(str(digit) for digit in range(10)),
        splits={WHOLE: examples},
    )


def _png(scan: np.ndarray) -> bytes:
    grey = Image.fromarray((scan * (255.0 / 16.0)).round().astype(np.uint8))
    stream = io.BytesIO()
    grey.resize((DIGIT_SIDE_PX, DIGIT_SIDE_PX), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()
