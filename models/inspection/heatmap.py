"""Explanations: where in the picture the evidence for a class lies, as a grid and as a picture.

`cam` is Grad-CAM before its ReLU for every class (`models.networks.heads`). Letters used in shapes:
K classes, h and w cells of the last feature map, H and W pixels of the model's input.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.inspection.saliency import spread

STRONGEST_COVER = 0.75
"""Share of the heat's colour in the overlay where the heat is 1. The picture stays visible."""
DIMMED = 0.55
"""Share of the picture's brightness that is kept where the heat is 0."""
RAMP_AT = (0.0, 0.5, 1.0)
RAMP_RGB = ((90, 20, 140), (240, 90, 40), (255, 240, 120))
"""Violet, orange, light yellow. Lightness rises with the heat, for people with colour blindness."""


@dataclass(frozen=True)
class Heatmap:
    """Evidence for one class over the model's input."""

    index: int
    heat_hw: NDArray[np.float32]
    """0 to 1, row by row from the top left: 1 is the strongest cell, 0 has no evidence."""
    peak: float
    """Grad-CAM's value in the strongest cell; 0 without any evidence.

    Heat times peak compares across classes and images."""


def heatmap(cam_Khw: NDArray[np.float32], index: int) -> Heatmap:
    """The heatmap of class *index*: Grad-CAM (its ReLU applied), divided by its strongest cell.

    Source: Selvaraju et al. 2017, eq. 2.
    """
    positive_hw = np.maximum(cam_Khw[index], 0.0)
    peak = float(positive_hw.max())
    return Heatmap(
        index, (positive_hw / peak if peak > 0.0 else positive_hw).astype(np.float32), peak
    )


def overlay(pixels_HWC: NDArray[np.uint8], heat_hw: NDArray[np.float32]) -> Image.Image:
    """The model's input under *heat_hw*, of 0 to 1, interpolated linearly between its cells."""
    height, width = pixels_HWC.shape[:2]
    heat_HW1 = spread(heat_hw, height, width)[:, :, np.newaxis]
    colours = np.asarray(RAMP_RGB, dtype=np.float32)
    colour_HWC = np.stack(
        [np.interp(heat_HW1[:, :, 0], RAMP_AT, colours[:, channel]) for channel in range(3)], axis=2
    )
    cover_HW1 = heat_HW1 * STRONGEST_COVER
    picture_HWC = pixels_HWC * (DIMMED + (1.0 - DIMMED) * heat_HW1)
    blended_HWC = picture_HWC * (1.0 - cover_HW1) + colour_HWC * cover_HW1
    return Image.fromarray(blended_HWC.round().astype(np.uint8))


def overlay_png(pixels_HWC: NDArray[np.uint8], heat_hw: NDArray[np.float32]) -> bytes:
    """`overlay` as a PNG file."""
    stream = io.BytesIO()
    overlay(pixels_HWC, heat_hw).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
