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

from models.messages import one_line

COLUMNS = 8
TILE_PX = 112
GAP_PX = 10
LEAST = {TILE_PX: "28%", 300: "45%", 10_000: "100%"}
"""Side of a picture in pixels -> its share of the width of a phone: three in a row, two, one."""
LABEL_PX = 18
MARGIN_PX = 16
LEAST_PX = 620
"""Width of a picture at least."""
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
    width = 2 * MARGIN_PX + columns * (tile_px + GAP_PX) - GAP_PX
    found, top = blank_sheet(width, rows * (tile_px + LABEL_PX + GAP_PX), title=title, lines=lines)
    draw = ImageDraw.Draw(found)
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x = MARGIN_PX + index % columns * (tile_px + GAP_PX)
        y = top + index // columns * (tile_px + LABEL_PX + GAP_PX)
        found.paste(fitted(tile, tile_px), (x, y))
        draw.text((x, y + tile_px + 2), label, SOFT, font(12))
    return found


def blank_sheet(
    width: int, height: int, *, title: str, lines: Sequence[str] = ()
) -> tuple[Image.Image, int]:
    """A white sheet with a title and *lines* above room of *height* pixels, and where it begins."""
    width = max(width, LEAST_PX)
    room = width - 2 * MARGIN_PX
    heads = _wrapped(one_line(title), room, 18)
    wrapped = [part for line in lines for part in _wrapped(line, room, 13)]
    below = MARGIN_PX + 24 * len(heads)
    top = below + 18 * len(wrapped) + 10
    found = Image.new("RGB", (width, top + height + MARGIN_PX), GROUND)
    found.info["title"] = title
    draw = ImageDraw.Draw(found)
    for index, line in enumerate(heads):
        draw.text((MARGIN_PX, MARGIN_PX + 24 * index), line, INK, font(18))
    for index, line in enumerate(wrapped):
        draw.text((MARGIN_PX, below + 4 + 18 * index), line, SOFT, font(13))
    return found, top


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all pictures."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def cut(text: str, width: float, size: int = 12) -> str:
    """*text* on a line of *width* pixels; of a longer one the end is shown."""
    text = one_line(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


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
    return tile if max(tile.size) <= side else fitted(tile, side)


def _wrapped(line: str, width: int, size: int) -> list[str]:
    """*line* in lines of at most *width* pixels, broken between words."""
    found = [""]
    for word in line.split(" "):
        longer = f"{found[-1]} {word}".lstrip()
        if found[-1] and font(size).getlength(longer) > width:
            found.append(word)
        else:
            found[-1] = longer
    return found


def fitted(tile: Image.Image, side: int) -> Image.Image:
    """*tile* fitted into a square of *side* pixels, cells as squares, on the ground colour."""
    scale = side / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    # A photo is smoothed; the cells of a small map stay squares.
    how = Image.Resampling.NEAREST if scale >= 1.0 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(tile.resize(size, how))
    return square
