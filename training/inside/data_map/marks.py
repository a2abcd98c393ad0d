"""How a class looks on the map: a colour and a shape, so that either is enough.

Shapes are polygons around 0 with a radius of about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#8a7a00")
"""Blue, orange, green, pink, light blue, vermilion, black and olive, told apart by everyone.

Source: Okabe and Ito 2008, "Color Universal Design"; its yellow, which is pale on white, is darker
here."""
OTHER = "#9aa4b1"
"""Classes beyond `MOST`."""
MOST = 24
Polygon = tuple[tuple[float, float], ...]


def _regular(corners: int, turn: float = 0.0) -> Polygon:
    return tuple(
        (math.sin(2 * math.pi * k / corners + turn), -math.cos(2 * math.pi * k / corners + turn))
        for k in range(corners)
    )


def _star(points: int, inner: float) -> Polygon:
    return tuple(
        (radius * math.sin(math.pi * k / points), -radius * math.cos(math.pi * k / points))
        for k in range(2 * points)
        for radius in [1.15 if k % 2 == 0 else inner]
    )


_PLUS: Polygon = (
    *((-0.35, -1.0), (0.35, -1.0), (0.35, -0.35), (1.0, -0.35), (1.0, 0.35), (0.35, 0.35)),
    *((0.35, 1.0), (-0.35, 1.0), (-0.35, 0.35), (-1.0, 0.35), (-1.0, -0.35), (-0.35, -0.35)),
)
SHAPES: tuple[Polygon, ...] = (
    _regular(20),
    tuple((x * 1.15, y * 1.15) for x, y in _regular(3)),
    tuple((x * 1.25, y * 1.25) for x, y in _regular(4, math.pi / 4)),
    tuple((x * 1.15, y * 1.15) for x, y in _regular(3, math.pi)),
    tuple((x * 1.2, y * 1.2) for x, y in _regular(4)),
    _PLUS,
    _star(5, 0.5),
)
"""Circle, triangle, square, triangle down, diamond, plus and star."""


@dataclass(frozen=True)
class Mark:
    """How the points of one class look."""

    colour: str
    shape: Polygon


def marks(classes: list[str]) -> dict[str, Mark]:
    """The mark of each of *classes*, the most frequent first; those beyond `MOST` look alike.

    Seven shapes and eight colours give 56 pairs before one comes again.
    """
    return {
        label: Mark(COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)])
        if place < MOST
        else Mark(OTHER, SHAPES[0])
        for place, label in enumerate(classes)
    }
