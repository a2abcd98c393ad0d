"""Feature maps as one grey picture: a tile for each channel, each scaled by its own range."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import BadRequest
from models.inspection.layers import Layer
from models.inspection.saliency import averaged

Floats = NDArray[np.float32]
CHANNELS_MAX, CELLS_MAX, COLUMNS = 64, 112, 8
VALUES_MAX = 4096
"""Most values of a vector in an answer."""
DIGITS = 6
"""Significant digits of values in answers: float32 has seven."""


@dataclass(frozen=True)
class Channels:
    """Which channels a client asks for."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Channels:
        """The channels in *text*: `5` or `0-63`. Raises `BadRequest`."""
        found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", text)
        first, last = (
            (int(found[1]), int(found[2] if found[2] is not None else found[1]))
            if found
            else (1, 0)
        )
        if not 0 <= last - first < CHANNELS_MAX:
            raise BadRequest(
                f"channels is {text[:40]!r}; expected one channel or a range of at most"
                f" {CHANNELS_MAX}, such as 0-63"
            )
        return cls(first, last)


def channels_of(values_Chw: Floats, channels: Channels, layer: Layer) -> dict[str, Any]:
    """The tiles of *channels*, and the range, mean and share of zeros of each.

    Values that are not finite count as 0 in the picture; ranges leave them out. Raises `BadRequest`
    if the layer has none of *channels*.
    """
    count = len(values_Chw)
    if channels.first >= count:
        raise BadRequest(
            f"channels begins with {channels.first}; layer {layer.name} has {count}, 0 to"
            f" {count - 1}"
        )
    shown = range(channels.first, min(channels.last + 1, count))
    maps = [values_Chw[index] for index in shown]
    finite = [np.nan_to_num(map_hw, posinf=0.0, neginf=0.0) for map_hw in maps]
    tiles = [_tile(map_hw) for map_hw in finite]
    columns = min(COLUMNS, len(tiles))
    return {
        "channels": list(shown),
        "tile": list(tiles[0].shape),
        "columns": columns,
        "ranges": [[_short(map_hw.min()), _short(map_hw.max())] for map_hw in finite],
        "means": [_short(map_hw.mean()) for map_hw in finite],
        "zeros": [_short((map_hw == 0.0).mean()) for map_hw in maps],
        "not_finite": int(sum(map_hw.size - np.isfinite(map_hw).sum() for map_hw in maps)),
        "sheet_png": png(_sheet(tiles, columns)),
    }


def values_of(values: Floats, layer: Layer) -> dict[str, Any]:
    """The values of a layer without maps. Raises `BadRequest` for other shapes than vectors."""
    flat = values.ravel()
    if len(flat) != max(values.shape, default=1) or len(flat) > VALUES_MAX:
        raise BadRequest(
            f"layer {layer.name} gives {'x'.join(map(str, values.shape))} values, which are neither"
            " maps nor a vector; ask for a layer with has_maps"
        )
    return {"values": [_short(value) if np.isfinite(value) else None for value in flat]}


def png(pixels: NDArray[np.uint8]) -> str:
    """base64 of a PNG of *pixels*, grey or RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _tile(map_hw: Floats) -> NDArray[np.uint8]:
    small_hw = averaged(map_hw, CELLS_MAX)
    low, high = float(small_hw.min()), float(small_hw.max())
    scaled_hw = (small_hw - low) * (255.0 / (high - low)) if high > low else np.zeros_like(small_hw)
    return scaled_hw.round().astype(np.uint8)


def _sheet(tiles: list[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """*tiles* row by row, *columns* in each row; missing ones are black."""
    height, width = tiles[0].shape
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * height, columns * width), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _short(value: SupportsFloat) -> float:
    return float(f"{float(value):.{DIGITS}g}")
