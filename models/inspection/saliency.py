"""Which parts of a photo an answer rests on, and how good such a map is.

A map by occlusion needs nothing but answers, so it works on any model. Deletion and insertion
measure a map: they ask the model again without, or with only, the places that the map calls strong.

Letters used in shapes: N images, H and W pixels, K classes, h and w cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Answers = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels [N,H,W,3] -> probabilities [N,K]."""
Floats = NDArray[np.float32]

WINDOW_SHARE = 0.2
"""Side of the square that occlusion covers, as a share of the image's shorter side."""
STEPS_ACROSS = 14
"""Places of that square along each side."""
BATCH = 16
STEPS = 28
"""Images of a deletion or insertion curve, the first and last included."""
BLUR_SHARE = 0.06
"""Radius of the blur that stands for "removed", as a share of the shorter side."""


@dataclass(frozen=True)
class Curve:
    """How a class's probability changes as pixels leave or come, strongest first."""

    probabilities: tuple[float, ...]
    """At equal shares of pixels, from none to all."""

    @property
    def score(self) -> float:
        """Area under the curve, 0 to 1."""
        return float(np.trapezoid(self.probabilities) / (len(self.probabilities) - 1))


def occlusion(answers: Answers, pixels_HWC: NDArray[np.uint8], index: int) -> Floats:
    """How far the probability of class *index* falls when a square is blurred away, [h,w].

    A cell holds the mean over the squares that cover it; negative where the class gains. Source:
    Zeiler and Fergus 2014, section 4.2, with a blur in place of a grey square, which is an edge of
    its own.
    """
    height, width = pixels_HWC.shape[:2]
    side = max(1, round(WINDOW_SHARE * min(height, width)))
    tops = np.linspace(0, height - side, STEPS_ACROSS).round().astype(int)
    lefts = np.linspace(0, width - side, STEPS_ACROSS).round().astype(int)
    places = [(top, left) for top in tops for left in lefts]
    soft_HWC = blurred(pixels_HWC)
    whole = float(answers(pixels_HWC[np.newaxis])[0, index])
    falls: list[float] = []
    for start in range(0, len(places), BATCH):
        covered_NHWC = np.repeat(pixels_HWC[np.newaxis], len(places[start : start + BATCH]), axis=0)
        for image_HWC, (top, left) in zip(covered_NHWC, places[start:], strict=False):
            window = slice(top, top + side), slice(left, left + side)
            image_HWC[window] = soft_HWC[window]
        falls.extend(whole - answers(covered_NHWC)[:, index])
    total_HW, count_HW = np.zeros((height, width)), np.zeros((height, width))
    for fall, (top, left) in zip(falls, places, strict=True):
        window = slice(top, top + side), slice(left, left + side)
        total_HW[window] += fall
        count_HW[window] += 1
    mean_HW = (total_HW / np.maximum(count_HW, 1)).astype(np.float32)
    return averaged(mean_HW, STEPS_ACROSS)


def deletion(answers: Answers, pixels_HWC: NDArray[np.uint8], heat_hw: Floats, index: int) -> Curve:
    """The probability of class *index* while the strongest pixels of *heat_hw* are blurred away.

    A good map makes it fall early: less is better. Source: Petsiuk, Das and Saenko 2018, "RISE".
    """
    return _curve(answers, pixels_HWC, blurred(pixels_HWC), heat_hw, index)


def insertion(
    answers: Answers, pixels_HWC: NDArray[np.uint8], heat_hw: Floats, index: int
) -> Curve:
    """The probability of class *index* while the strongest pixels come back into a blurred image.

    A good map makes it rise early: more is better. Source: as `deletion`.
    """
    return _curve(answers, blurred(pixels_HWC), pixels_HWC, heat_hw, index)


def agreement(first_hw: Floats, second_hw: Floats) -> float | None:
    """Spearman's rank correlation of two maps, -1 to 1, on the coarser grid of both.

    None if that grid has one cell.
    """
    rows, columns = (min(a, b) for a, b in zip(first_hw.shape, second_hw.shape, strict=True))
    if rows * columns == 1:
        return None
    ranks = [
        np.argsort(np.argsort(_resized(heat_hw, (rows, columns), Image.Resampling.BOX).ravel()))
        for heat_hw in (first_hw, second_hw)
    ]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def spread(heat_hw: Floats, height: int, width: int) -> Floats:
    """*heat_hw* on *height* x *width* pixels, linear between the centres of cells."""
    return _resized(heat_hw, (height, width), Image.Resampling.BILINEAR)


def _curve(
    answers: Answers,
    before_HWC: NDArray[np.uint8],
    after_HWC: NDArray[np.uint8],
    heat_hw: Floats,
    index: int,
) -> Curve:
    height, width = before_HWC.shape[:2]
    order = np.argsort(-spread(heat_hw, height, width).ravel(), kind="stable")
    found: list[float] = []
    for batch_NHWC in _batches(before_HWC, after_HWC, order):
        found.extend(map(float, answers(batch_NHWC)[:, index]))
    return Curve(tuple(found))


def _batches(
    before_HWC: NDArray[np.uint8], after_HWC: NDArray[np.uint8], order: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    counts = np.linspace(0, len(order), STEPS).round().astype(int)
    for start in range(0, STEPS, BATCH):
        images = []
        for count in counts[start : start + BATCH]:
            flat_PC = before_HWC.reshape(-1, 3).copy()
            flat_PC[order[:count]] = after_HWC.reshape(-1, 3)[order[:count]]
            images.append(flat_PC.reshape(before_HWC.shape))
        yield np.stack(images)


def averaged(heat_HW: Floats, cells: int) -> Floats:
    """The means of *heat_HW* on a grid of *cells* x *cells*, or as it is where it has fewer."""
    rows, columns = (min(cells, side) for side in heat_HW.shape)
    return _resized(heat_HW, (rows, columns), Image.Resampling.BOX)


def blurred(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """*pixels_HWC* without its details: what stands for "nothing there"."""
    radius = BLUR_SHARE * min(pixels_HWC.shape[:2])
    return np.asarray(Image.fromarray(pixels_HWC).filter(ImageFilter.GaussianBlur(radius)))


def _resized(heat_hw: Floats, size: tuple[int, int], how: Image.Resampling) -> Floats:
    picture = Image.fromarray(heat_hw.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), how), dtype=np.float32)
