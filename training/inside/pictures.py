"""Pictures of `loupe inspect`: a grid of small maps with a title, a legend and labels, as PNG.

Letters used in shapes: C channels, h and w cells of a map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
TILE_PX = 112
GAP_PX = 10
LEAST = {TILE_PX: "28%", 300: "45%", 10_000: "100%"}
"""Side of a picture in pixels -> its share of the width of a phone: three in a row, two, one."""
LABEL_PX = 18
MARGIN_PX = 16
INK, SOFT, GROUND = (27, 31, 36), (91, 100, 112), (255, 255, 255)
RAMP_RGB = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Dark violet to yellow: lightness rises all the way, so that it reads without colour vision.

Source: five colours of matplotlib's viridis."""
DIVERGING_RGB = ((33, 102, 172), (247, 247, 247), (178, 24, 43))
"""Blue below zero, white at zero, red above. Source: ColorBrewer's RdBu."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Small pictures with a label each, below a title and lines of text."""

    title: str
    lines: Sequence[str] = ()
    tiles: Sequence[Image.Image]
    labels: Sequence[str]
    tile_px: int = TILE_PX
    columns: int = COLUMNS


def drawn(sheet: Sheet) -> Image.Image:
    """*sheet* as one picture."""
    return grid(
        sheet.tiles,
        sheet.labels,
        title=sheet.title,
        lines=sheet.lines,
        tile_px=sheet.tile_px,
        columns=sheet.columns,
    )


def figures(sheet: Sheet) -> str:
    """*sheet* as HTML: its tiles flow with the width of the page, and labels are text."""
    shown = "".join(
        f"<figure>{image_tag(png(_reduced(tile, sheet.tile_px)), label)}"
        f"<figcaption>{escape(label)}</figcaption></figure>"
        for tile, label in zip(sheet.tiles, sheet.labels, strict=True)
    )
    lines = "".join(f"<p>{escape(line)}</p>" for line in sheet.lines)
    least = next(share for size, share in LEAST.items() if sheet.tile_px <= size)
    style = f"--tile:{sheet.tile_px}px;--least:{least}"
    return f'{lines}<div class="tiles" style="{style}">{shown}</div>'


def coloured(
    values_hw: NDArray[np.floating], low: float, high: float, ramp: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """*values_hw* in the colours of *ramp*, from *low* to *high*."""
    share_hw = np.clip((values_hw - low) / max(high - low, 1e-12), 0.0, 1.0)
    at = np.linspace(0.0, 1.0, len(ramp))
    colours = np.asarray(ramp, dtype=np.float64)
    rgb_hw3 = np.stack([np.interp(share_hw, at, colours[:, channel]) for channel in range(3)], 2)
    return Image.fromarray(rgb_hw3.round().astype(np.uint8))


def grid(
    tiles: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    title: str,
    lines: Sequence[str] = (),
    tile_px: int = TILE_PX,
    columns: int = COLUMNS,
) -> Image.Image:
    """*tiles* in rows of *columns*, enlarged without smoothing, each with its label below."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    top = MARGIN_PX + 26 + 18 * len(lines) + 8
    width = max(2 * MARGIN_PX + columns * (tile_px + GAP_PX) - GAP_PX, 620)
    height = top + rows * (tile_px + LABEL_PX + GAP_PX) + MARGIN_PX
    sheet = Image.new("RGB", (width, height), GROUND)
    sheet.info["title"] = title
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, ImageFont.load_default(18))
    for index, line in enumerate(lines):
        draw.text((MARGIN_PX, MARGIN_PX + 28 + 18 * index), line, SOFT, ImageFont.load_default(13))
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x = MARGIN_PX + index % columns * (tile_px + GAP_PX)
        y = top + index // columns * (tile_px + LABEL_PX + GAP_PX)
        sheet.paste(_enlarged(tile, tile_px), (x, y))
        draw.text((x, y + tile_px + 2), label, SOFT, ImageFont.load_default(12))
    return sheet


def png(image: Image.Image) -> bytes:
    """*image* as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def image_tag(encoded: bytes, alternative: str) -> str:
    """A PNG inside HTML, with *alternative* for those who do not see it."""
    data = base64.b64encode(encoded).decode("ascii")
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def _reduced(tile: Image.Image, side: int) -> Image.Image:
    """*tile* as it is, or as a page needs it: a browser enlarges small maps by itself."""
    return tile if max(tile.size) <= side else _enlarged(tile, side)


def _enlarged(tile: Image.Image, side: int) -> Image.Image:
    """*tile* fitted into a square of *side* pixels, cells as squares, on the ground colour."""
    scale = side / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    # A photo is smoothed; the cells of a small map stay squares.
    how = Image.Resampling.NEAREST if scale >= 1.0 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(tile.resize(size, how))
    return square
