"""A bar for each layer on a logarithmic scale, as SVG for a page and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw

from training.inside.pictures import INK, MARGIN_PX, SOFT, blank_sheet, cut, font

NAMES = 200
"""Width of the names, in pixels."""
LENGTH = 420
"""Of the longest bar."""
ROW = 14
TOP = 22
"""Height of the scale's labels."""
BAR_RGB, SECOND_RGB, LINE_RGB = (37, 99, 168), (230, 159, 0), (221, 226, 232)
MOST_DECADES = 9


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row."""

    name: str
    value: float
    """Not negative; 0 has no bar."""
    second: float | None = None
    """A second value, drawn as a thinner bar; None: there is none."""


@dataclass(frozen=True)
class Scale:
    """Powers of ten from the left end to the right."""

    low: int
    high: int

    def share(self, value: float) -> float:
        """Where *value* lies, 0 to 1."""
        if value <= 0.0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low)))


def scale_of(bars: Sequence[Bar]) -> Scale:
    """The decades that hold the values of *bars*; of more than `MOST_DECADES` the largest."""
    values = [value for bar in bars for value in (bar.value, bar.second) if value]
    if not values:
        return Scale(-1, 0)
    high = math.ceil(math.log10(max(values)))
    low = math.floor(math.log10(min(values)))
    return Scale(max(min(low, high - 1), high - MOST_DECADES), high)


def bars_svg(bars: Sequence[Bar], scale: Scale, *, label: str) -> str:
    """The bars for a page. Pointing at one tells its value."""
    parts = []
    for index, bar in enumerate(bars):
        y = TOP + index * ROW
        width = scale.share(bar.value) * LENGTH
        thin = bar.second is not None
        parts.append(
            f'<text x="{NAMES - 6}" y="{y + 10}" text-anchor="end">'
            f"{escape(cut(bar.name, NAMES - 10))}</text>"
            f'<rect x="{NAMES}" y="{y + 1}" width="{width:.1f}" height="{7 if thin else 11}">'
            f"<title>{escape(bar.name)}: {bar.value:.3g}</title></rect>"
        )
        if bar.second is not None:
            width = scale.share(bar.second) * LENGTH
            parts.append(
                f'<rect class="second" x="{NAMES}" y="{y + 9}" width="{width:.1f}" height="3">'
                f"<title>{escape(bar.name)}: {bar.second:.3g}</title></rect>"
            )
    marks = "".join(
        f'<text x="{NAMES + _at(scale, power):.0f}" y="13" text-anchor="middle">1e{power}</text>'
        for power in range(scale.low, scale.high + 1)
    )
    height = TOP + len(bars) * ROW + 4
    return (
        f'<svg class="bars" viewBox="0 0 {NAMES + LENGTH + 24} {height}" role="img"'
        f' aria-label="{escape(label)}">{marks}{"".join(parts)}</svg>'
    )


def bars_picture(
    bars: Sequence[Bar], scale: Scale, *, title: str, lines: Sequence[str]
) -> Image.Image:
    """The bars on a sheet, each with its value behind it."""
    height = TOP + len(bars) * ROW
    found, start = blank_sheet(
        NAMES + LENGTH + 80 + 2 * MARGIN_PX, height, title=title, lines=lines
    )
    draw = ImageDraw.Draw(found)
    zero = MARGIN_PX + NAMES
    for power in range(scale.low, scale.high + 1):
        x = zero + _at(scale, power)
        draw.line((x, start + TOP - 4, x, start + height), LINE_RGB)
        draw.text((x, start + 4), f"1e{power}", SOFT, font(11), anchor="ma")
    for index, bar in enumerate(bars):
        y = start + TOP + index * ROW
        name = cut(bar.name, NAMES - 10)
        draw.text((zero - 6, y + 6), name, INK, font(11), anchor="rm")
        width = scale.share(bar.value) * LENGTH
        thin = bar.second is not None
        if width:
            draw.rectangle((zero, y + 1, zero + width, y + (8 if thin else 11)), BAR_RGB)
        if bar.second is not None:
            second = scale.share(bar.second) * LENGTH
            draw.rectangle((zero, y + 9, zero + second, y + 11), SECOND_RGB)
            width = max(width, second)
        draw.text((zero + width + 5, y + 6), f"{bar.value:.2g}", SOFT, font(11), anchor="lm")
    return found


def _at(scale: Scale, power: int) -> float:
    return (power - scale.low) / (scale.high - scale.low) * LENGTH
