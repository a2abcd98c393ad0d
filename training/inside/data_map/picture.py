"""The map as a picture: points at the left, the most telling photos at the right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from training.inside.data_map.marks import MOST, OTHER, SHAPES, Mark, marks
from training.inside.data_map.points import DataMap
from training.inside.data_map.words import sentences
from training.inside.pictures import GAP_PX, INK, MARGIN_PX, SOFT, blank_sheet, cut, font

MAP_PX = 640
TILE_PX = 104
ACROSS = 3
PHOTO_TEXT_PX = 34
"""Height of the two lines below a photo."""
TOLD = 9
"""Mistakes, and outliers, whose photo is shown."""
SHARPER = 2
"""The map is drawn so many times as large and made smaller: edges become smooth."""
FRAME_RGB, MISTAKE_RGB = (208, 213, 219), (0, 0, 0)
LEGEND_ROW = 18


def map_picture(found: DataMap) -> Image.Image:
    """The map with its legend, and numbered photos of mistakes and outliers."""
    side = ACROSS * (TILE_PX + GAP_PX)
    legend = -(-min(len(found.classes), MOST + 1) // 4) * LEGEND_ROW + 2 * LEGEND_ROW
    lists = sum(
        30 + -(-len(places[:TOLD]) // ACROSS) * (TILE_PX + PHOTO_TEXT_PX)
        for places in (found.mistakes, found.outliers)
    )
    width = MARGIN_PX * 3 + MAP_PX + side
    drawn, top = blank_sheet(
        width, max(MAP_PX + legend, lists), title=found.title, lines=sentences(found)
    )
    numbers = _numbers(found)
    drawn.paste(_map(found, numbers), (MARGIN_PX, top))
    _legend(drawn, found, top + MAP_PX + 8)
    left, y = 2 * MARGIN_PX + MAP_PX, top
    for title, places in (
        ("Mistakes, surest first", found.mistakes),
        ("Outliers, farthest first", found.outliers),
    ):
        ImageDraw.Draw(drawn).text((left, y), title if places else "", INK, font(14))
        y = _photos(drawn, found, places[:TOLD], numbers, (left, y + 24))
    return drawn


def _numbers(found: DataMap) -> dict[int, int]:
    """The place of each photo that is shown -> its number on the map."""
    places = dict.fromkeys([*found.mistakes[:TOLD], *found.outliers[:TOLD]])
    return {place: number for number, place in enumerate(places, 1)}


def _map(found: DataMap, numbers: dict[int, int]) -> Image.Image:
    large = Image.new("RGB", (MAP_PX * SHARPER, MAP_PX * SHARPER), (255, 255, 255))
    draw = ImageDraw.Draw(large)
    draw.rectangle((0, 0, large.width - 1, large.height - 1), outline=FRAME_RGB, width=SHARPER)
    looks = marks(found.classes)
    radius = SHARPER * (5.0 if len(found.points) <= 1000 else 3.5)
    special = set(found.mistakes) | set(found.outliers)
    # What stands out lies on top.
    for place in sorted(range(len(found.points)), key=lambda place: place in special):
        point = found.points[place]
        x, y = _at(point.at, large.width)
        _draw_mark(draw, looks[point.label], x, y, radius)
        if point.mistake:
            reach = radius * 1.9
            box = (x - reach, y - reach, x + reach, y + reach)
            draw.ellipse(box, outline=MISTAKE_RGB, width=2 * SHARPER)
        if point.outlier:
            reach = radius * 1.9
            box = (x - reach, y - reach, x + reach, y + reach)
            draw.rectangle(box, outline=MISTAKE_RGB, width=SHARPER)
    taken: list[tuple[float, float]] = []
    for place, number in numbers.items():
        spot = _free(_at(found.points[place].at, large.width), 2.9 * radius, taken)
        taken.append(spot)
        draw.text(
            spot,
            str(number),
            INK,
            font(12 * SHARPER),
            anchor="mm",
            stroke_width=2 * SHARPER,
            stroke_fill=(255, 255, 255),
        )
    return large.resize((MAP_PX, MAP_PX), Image.Resampling.LANCZOS)


def _free(
    at: tuple[float, float], reach: float, taken: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """A place for a number beside *at*, the farthest from the numbers that are *taken*."""
    spots = [
        (at[0] + across * reach, at[1] + down * reach)
        for across, down in ((1, -1), (-1, -1), (1, 1), (-1, 1), (1.3, 0), (-1.3, 0))
    ]
    room = 16.0 * SHARPER
    return max(spots, key=lambda spot: min([room, *(math.dist(spot, one) for one in taken)]))


def _at(at: tuple[float, float], side: int) -> tuple[float, float]:
    return side * (0.04 + 0.92 * at[0]), side * (0.96 - 0.92 * at[1])


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, x: float, y: float, radius: float) -> None:
    corners = [(x + radius * across, y + radius * down) for across, down in mark.shape]
    draw.polygon(corners, mark.colour, (255, 255, 255), width=1)


def _legend(drawn: Image.Image, found: DataMap, top: int) -> None:
    draw = ImageDraw.Draw(drawn)
    looks, column = marks(found.classes), MAP_PX // 4
    entries = [(label, looks[label]) for label in found.classes[:MOST]]
    if len(found.classes) > MOST:
        entries.append((f"{len(found.classes) - MOST} classes more", Mark(OTHER, SHAPES[0])))
    for place, (label, mark) in enumerate(entries):
        x, y = MARGIN_PX + place % 4 * column, top + place // 4 * LEGEND_ROW
        _draw_mark(draw, mark, x + 8, y + 8, 5.0)
        draw.text((x + 18, y + 8), cut(label, column - 24), INK, font(12), anchor="lm")
    y = top + -(-len(entries) // 4) * LEGEND_ROW + 6
    draw.ellipse((MARGIN_PX + 1, y + 1, MARGIN_PX + 15, y + 15), outline=MISTAKE_RGB, width=2)
    draw.text((MARGIN_PX + 22, y + 8), "mistake", INK, font(12), anchor="lm")
    x = MARGIN_PX + column
    draw.rectangle((x + 1, y + 1, x + 15, y + 15), outline=MISTAKE_RGB)
    draw.text((x + 22, y + 8), "outlier", INK, font(12), anchor="lm")


def _photos(
    drawn: Image.Image,
    found: DataMap,
    places: Sequence[int],
    numbers: dict[int, int],
    start: tuple[int, int],
) -> int:
    """Draw the photos of *places*; the height below them."""
    draw = ImageDraw.Draw(drawn)
    for index, place in enumerate(places):
        point = found.points[place]
        x = start[0] + index % ACROSS * (TILE_PX + GAP_PX)
        y = start[1] + index // ACROSS * (TILE_PX + PHOTO_TEXT_PX)
        photo = Image.fromarray(found.thumbnails_NHWC[place])
        drawn.paste(photo.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC), (x, y))
        words = (
            f"{numbers[place]}: {point.label}",
            f"answer {point.answer} {point.probability:.0%}",
        )
        for line, text in enumerate(words):
            colour = (INK, SOFT)[line]
            draw.text((x, y + TILE_PX + 2 + 14 * line), cut(text, TILE_PX, 11), colour, font(11))
    return start[1] + -(-len(places) // ACROSS) * (TILE_PX + PHOTO_TEXT_PX) + 6
