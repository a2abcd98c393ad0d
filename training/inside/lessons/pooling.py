"""What pooling passes back: a maximum its one winner, an average equal shares, in numbers.

Letters used in shapes: h and w cells of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.inside.lessons.window import Floats, LayerValues, Window

SIDE = 2
"""Cells along each side of the pooling windows of the example, and their stride."""


@dataclass(frozen=True, kw_only=True)
class PooledPatch:
    """A patch of a real map, and what 2x2 pooling of it gives and passes back.

    At each pooled value a gradient of 1 arrives.
    """

    row: int
    column: int
    """The patch's first cell in the map."""
    values_hw: Floats
    maxima_hw: Floats
    means_hw: Floats
    max_back_hw: Floats
    mean_back_hw: Floats


def pooled_patch(values: LayerValues, window: Window) -> PooledPatch | None:
    """The 4x4 cells of the layer's own output around *window*; None: the map has fewer than 2x2."""
    map_hw = values.output_Dhw[window.filter]
    windows = [min(2, size // SIDE) for size in map_hw.shape]
    if not all(windows):
        return None
    height, width = (count * SIDE for count in windows)
    row = min(max(0, window.row - height // 2), map_hw.shape[0] - height)
    column = min(max(0, window.column - width // 2), map_hw.shape[1] - width)
    patch_hw = map_hw[row : row + height, column : column + width]
    # [rows of windows, columns of windows, cells of a window]
    cells = patch_hw.reshape(windows[0], SIDE, windows[1], SIDE).swapaxes(1, 2)
    cells = cells.reshape(*windows, SIDE * SIDE)
    winners = np.eye(SIDE * SIDE)[cells.argmax(axis=2)]
    back_hw = winners.reshape(*windows, SIDE, SIDE).swapaxes(1, 2).reshape(height, width)
    return PooledPatch(
        row=row,
        column=column,
        values_hw=patch_hw,
        maxima_hw=cells.max(axis=2),
        means_hw=cells.mean(axis=2),
        max_back_hw=back_hw,
        mean_back_hw=np.full((height, width), 1.0 / SIDE**2),
    )
