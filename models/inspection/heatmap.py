"""Explanations: where in the picture the evidence for a class lies, as a grid and as a picture.

`cam` is Grad-CAM before its ReLU for every class (`models.networks.heads`). Letters used in shapes:
K classes, h and w cells of the last feature map, H and W pixels of the model's input.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import cache

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
    levels_HW = (spread(heat_hw, height, width) * 255.0).round().astype(np.uint8)
    kept_L, added_L3 = _levels()
    # One colour at a time: planes are half as costly as interleaved colours.
    planes = [
        pixels_HWC[:, :, channel] * kept_L[levels_HW] + added_L3[:, channel][levels_HW]
        for channel in range(3)
    ]
    return Image.merge("RGB", [Image.fromarray(plane.astype(np.uint8)) for plane in planes])


@cache
def _levels() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For each of 256 levels of heat: what share of the picture stays, and the colour over it."""
    heat_L = np.linspace(0.0, 1.0, 256, dtype=np.float32)
    colours = np.asarray(RAMP_RGB, dtype=np.float32)
    colour_L3 = np.stack(
        [np.interp(heat_L, RAMP_AT, colours[:, channel]) for channel in range(3)], axis=1
    )
    cover_L = heat_L * STRONGEST_COVER
    kept_L = (DIMMED + (1.0 - DIMMED) * heat_L) * (1.0 - cover_L)
    # Half a level, since a colour is cut to a whole number and not rounded.
    added_L3 = colour_L3 * cover_L[:, np.newaxis] + 0.5
    return kept_L.astype(np.float32), added_L3.astype(np.float32)


def overlay_png(pixels_HWC: NDArray[np.uint8], heat_hw: NDArray[np.float32]) -> bytes:
    """`overlay` as a PNG file."""
    stream = io.BytesIO()
    overlay(pixels_HWC, heat_hw).save(
        stream, format="PNG", compress_level=1, compress_type=zlib.Z_RLE
    )
    return stream.getvalue()
