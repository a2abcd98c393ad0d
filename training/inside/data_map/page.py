"""The map as one page whose points show their photo. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from training.inside.data_map.marks import MOST, OTHER, SHAPES, Mark, marks
from training.inside.data_map.points import THUMBNAIL_PX, DataMap
from training.inside.data_map.words import COLUMNS, rows, sentences

THUMBNAILS = 600
"""Photos in the page; a map of more shows the name alone for the rest."""
ACROSS = 25
LISTED = 60
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
)


def map_page(found: DataMap) -> str:
    """The page: the map, and the lists of mistakes and outliers with their photos."""
    shown = _with_photo(found)
    cells = {place: cell for cell, place in enumerate(shown)}
    looks = marks(found.classes)
    legend = [(label, looks[label]) for label in found.classes[:MOST]]
    if len(found.classes) > MOST:
        legend.append((f"{len(found.classes) - MOST} classes more", Mark(OTHER, SHAPES[0])))
    return _ENVIRONMENT.get_template("map.html").render(
        title=found.title,
        summary=sentences(found),
        sprite=_sprite(found, shown),
        rows=-(-len(shown) // ACROSS),
        across=ACROSS,
        legend=[(label, mark.colour, _corners(mark)) for label, mark in legend],
        points=_json([_drawn(found, place, looks, cells) for place in range(len(found.points))]),
        columns=COLUMNS,
        lists=[
            (title, list(zip(places[:LISTED], rows(found, places[:LISTED]), strict=True)))
            for title, places in (
                ("Mistakes, the surest first", found.mistakes),
                ("Outliers, the farthest first", found.outliers),
            )
            if places
        ],
    )


def _with_photo(found: DataMap) -> list[int]:
    """Places whose photo is in the page: mistakes and outliers, then an even choice of the rest."""
    told = list(dict.fromkeys([*found.mistakes, *found.outliers]))[:THUMBNAILS]
    rest = sorted(set(range(len(found.points))) - set(told))
    count = min(THUMBNAILS - len(told), len(rest))
    even = np.linspace(0, len(rest) - 1, count).round().astype(int).tolist()
    return [*told, *(rest[place] for place in even)]


def _sprite(found: DataMap, shown: Sequence[int]) -> str:
    """All photos in one JPEG, in rows of `ACROSS`, as base64."""
    height = max(1, -(-len(shown) // ACROSS)) * THUMBNAIL_PX
    whole = Image.new("RGB", (ACROSS * THUMBNAIL_PX, height))
    for cell, place in enumerate(shown):
        corner = (cell % ACROSS * THUMBNAIL_PX, cell // ACROSS * THUMBNAIL_PX)
        whole.paste(Image.fromarray(found.thumbnails_NHWC[place]), corner)
    stream = io.BytesIO()
    whole.save(stream, format="JPEG", quality=78, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _drawn(
    found: DataMap, place: int, looks: dict[str, Mark], cells: dict[int, int]
) -> dict[str, Any]:
    """What the page knows of a point. Sizes are of a drawing of 1000 x 1000."""
    point = found.points[place]
    return {
        "x": round(40 + 920 * point.at[0], 1),
        "y": round(960 - 920 * point.at[1], 1),
        "c": looks[point.label].colour,
        "s": SHAPES.index(looks[point.label].shape),
        "cell": cells.get(place, -1),
        "photo": point.photo,
        "label": point.label,
        "answer": f"{point.answer} ({point.probability:.0%})",
        "among": point.among,
        "mistake": point.mistake,
        "outlier": point.outlier,
    }


def _json(document: object) -> str:
    """JSON that cannot end a script element."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _corners(mark: Mark) -> str:
    return " ".join(f"{x * 6 + 8:.1f},{y * 6 + 8:.1f}" for x, y in mark.shape)


def shapes_json() -> str:
    """The shapes, corner by corner, for the page's script."""
    return _json([" ".join(f"{x:.2f},{y:.2f}" for x, y in shape) for shape in SHAPES])


_ENVIRONMENT.globals["shapes"] = shapes_json
