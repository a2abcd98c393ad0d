"""The picture and the page of `loupe inspect convolution`."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.inside.lessons.convolution import ALL, Lesson, by_strength, forward_parts, matrices
from training.inside.lessons.convolution_back import backward_parts
from training.inside.lessons.numbers import Matrix, titled, written
from training.inside.lessons.part import Part, section
from training.inside.lessons.window import Floats, Window
from training.inside.page import page
from training.inside.pictures import DIVERGING_RGB, INK, Sheet, coloured, drawn, figures

TILE_PX = 280
LEAST_CELL_PX = 24
"""Smaller cells have no room for a number."""
FRAME_RGB = (230, 159, 0)
"""Orange. Source: Okabe and Ito, "Color Universal Design"."""
PAD_RGB = (208, 213, 219)


def convolution_picture(found: Lesson) -> Image.Image:
    """Where the window lies, and patch, kernel and products of the strongest input channels."""
    places, sums = places_sheet(found), _sums(found)
    return drawn(
        Sheet(
            title=found.title,
            lines=(*places.lines, *sums.lines),
            tiles=[*places.tiles, *sums.tiles],
            labels=[*places.labels, *sums.labels],
            tile_px=TILE_PX,
            columns=3,
        )
    )


def convolution_page(found: Lesson) -> str:
    """The page: the same with every number as text."""
    first, *others = forward_parts(found)
    sections = [section(first, figures(places_sheet(found))), *map(section, others)]
    for part in by_strength(found.window)[1:ALL]:
        more = Part(
            title=found.values.channel_name(found.window.channels[part]).capitalize(),
            matrices=[matrices(found.window, part)],
        )
        sections.insert(len(sections) - 1, section(more))
    return page(found.title, [], [*sections, *map(section, backward_parts(found))])


def places_sheet(found: Lesson) -> Sheet:
    """The photo, the strongest input channel and the output map, each with the place marked."""
    window, values = found.window, found.values
    part = window.channels[by_strength(window)[0]]
    box = (window.columns[0], window.rows[0], window.columns[-1] + 1, window.rows[-1] + 1)
    cell = (window.column, window.row, window.column + 1, window.row + 1)
    tiles = [_photo(found), _marked(values.input_Chw[part], box)]
    tiles.append(_marked(values.output_Dhw[window.filter], cell))
    return Sheet(
        title=found.title,
        lines=("Orange frames mark the place. Blue is below 0, white 0, red above.",),
        tiles=tiles,
        labels=["the photo", values.channel_name(part), f"output channel {window.filter}"],
        tile_px=TILE_PX,
        columns=3,
    )


def _sums(found: Lesson) -> Sheet:
    window = found.window
    tiles, labels = [], []
    for part in by_strength(window)[:ALL]:
        for matrix in matrices(window, part):
            tiles.append(_tile(matrix))
            sign = f"{matrix.sign} " if matrix.sign else ""
            labels.append(f"{sign}{titled(matrix)}, channel {window.channels[part]}")
    return Sheet(title="", lines=_sentence(window), tiles=tiles, labels=labels)


def _sentence(window: Window) -> tuple[str, ...]:
    shown = by_strength(window)[:ALL]
    parts = [f"{window.sums_I[part]:.4g}" for part in shown]
    rest = float(window.sums_I.sum()) - float(window.sums_I[shown].sum())
    if len(window.channels) > ALL:
        parts.append(f"{rest:.4g} (other channels)")
    if window.bias is not None:
        parts.append(f"{window.bias:.4g} (bias)")
    equal = "the network has the same" if window.equal else f"the network has {window.value:.6g}"
    written_sum = " + ".join(parts).replace("+ -", "- ")
    return (f"Sum of the products: {written_sum} = {window.total:.6g}; {equal}.",)


def _photo(found: Lesson) -> Image.Image:
    """The photo with a frame around what the output value sees."""
    photo = Image.fromarray(found.values.pixels_HWC)
    field = found.values.layer.field
    region = field.region(found.window.row, found.window.column) if field else None
    return _framed(photo, region)


def _marked(values_hw: Floats, box: tuple[float, float, float, float]) -> Image.Image:
    reach = max(float(np.percentile(np.abs(values_hw), 99.8)), 1e-12)
    return _framed(coloured(values_hw, -reach, reach, DIVERGING_RGB), box)


def _framed(picture: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    """*picture* as large as a tile, with a frame around *box* in its own cells."""
    scale = TILE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    large = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    if box is not None:
        left, top, right, bottom = (scale * part for part in box)
        ImageDraw.Draw(large).rectangle(
            (left - 3, top - 3, right + 2, bottom + 2), outline=FRAME_RGB, width=3
        )
    return large


def _tile(matrix: Matrix) -> Image.Image:
    """The matrix in colours, with its numbers where there is room for them."""
    height, width = matrix.values_hw.shape
    cell = TILE_PX // max(height, width)
    reach = max(float(np.abs(matrix.values_hw).max()), 1e-12)
    small = coloured(matrix.values_hw, -1.6 * reach, 1.6 * reach, DIVERGING_RGB)
    tile = small.resize((width * cell, height * cell), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(max(10, min(18, cell // 3.4)))
    for row, texts in enumerate(fitting(matrix, font, cell)):
        for column, text in enumerate(texts):
            left, top = column * cell, row * cell
            if text == "pad":
                draw.rectangle((left, top, left + cell, top + cell), fill=PAD_RGB)
            if cell >= LEAST_CELL_PX:
                at = (left + cell / 2, top + cell / 2)
                draw.text(at, text, INK, font, anchor="mm")
    return tile


def fitting(
    matrix: Matrix, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, cell_px: int
) -> list[list[str]]:
    """The numbers, rounded until the widest fits into its cell."""
    for decimals in (3, 2, 1):
        rows = written(matrix.values_hw, matrix.outside_hw, most_decimals=decimals)
        if max(font.getlength(text) for texts in rows for text in texts) <= cell_px - 2:
            return rows
    return written(matrix.values_hw, matrix.outside_hw, most_decimals=0)
