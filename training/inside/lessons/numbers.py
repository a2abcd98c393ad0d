"""Small tables of numbers: for the terminal, at most 80 columns wide, and for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

import numpy as np
from numpy.typing import NDArray

from training.inside.lessons.window import Floats

WIDTH = 79
CELL = 7
"""Characters of a number in the terminal, the space before it included."""
MOST = 11
"""Rows and columns of a table in the terminal."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A table of numbers with a title."""

    title: str
    values_hw: Floats
    outside_hw: NDArray[np.bool_] | None = None
    """Cells that are padding."""
    sign: str = ""
    """What stands between the matrix before and this one: x or =."""


def scale(values: Floats) -> int:
    """The power of ten in which *values* are best written; 0: as they are."""
    largest = float(np.abs(values).max(initial=0.0))
    return 0 if largest == 0.0 or 0.01 <= largest < 10_000 else floor(log10(largest))


def written(
    values_hw: Floats, outside_hw: NDArray[np.bool_] | None = None, *, most_decimals: int = 3
) -> list[list[str]]:
    """The numbers of *values_hw* in its scale, all with the same number of decimals."""
    scaled_hw = values_hw / 10.0 ** scale(values_hw)
    largest = float(np.abs(scaled_hw).max(initial=0.0))
    decimals = max(0, 3 - max(0, floor(log10(largest)) if largest >= 1.0 else 0))
    decimals = min(decimals, most_decimals)
    whole = bool((scaled_hw == scaled_hw.round()).all())
    # Adding 0 turns -0 into 0.
    rows = [
        [f"{value + 0.0:.{0 if whole else decimals}f}" for value in row]
        for row in scaled_hw.round(decimals)
    ]
    if outside_hw is None:
        return rows
    return [
        ["pad" if outside else text for text, outside in zip(texts, row, strict=True)]
        for texts, row in zip(rows, outside_hw, strict=True)
    ]


def short(value: float) -> str:
    """Four digits."""
    return f"{value + 0.0:.4g}"


def titled(matrix: Matrix) -> str:
    """The title, with the scale of the numbers where it is not 1."""
    power = scale(matrix.values_hw)
    return f"{matrix.title} (in 1e{power})" if power else matrix.title


def lines(matrices: Sequence[Matrix]) -> list[str]:
    """*matrices* next to each other where they fit in `WIDTH` columns, else below each other."""
    blocks = [_block(matrix) for matrix in matrices]
    if sum(len(block[0]) for block in blocks) + 3 * (len(blocks) - 1) <= WIDTH:
        return _beside(blocks, matrices)
    return [line for block in blocks for line in (*(line.rstrip() for line in block), "")]


def html(matrices: Sequence[Matrix]) -> str:
    """*matrices* as tables whose cells are coloured by their value, for a page."""
    return f'<div class="sums">{"".join(_table(matrix) for matrix in matrices)}</div>'


def _block(matrix: Matrix) -> list[str]:
    texts = written(matrix.values_hw, matrix.outside_hw)
    cut = [row[:MOST] for row in texts[:MOST]]
    rows = ["".join(text.rjust(CELL) for text in row) for row in cut]
    title = titled(matrix)
    if len(texts) > MOST or len(texts[0]) > MOST:
        title += f", the first {MOST}x{MOST}"
    width = max(len(title), *(len(row) for row in rows))
    return [title.ljust(width), *(row.ljust(width) for row in rows)]


def _beside(blocks: Sequence[list[str]], matrices: Sequence[Matrix]) -> list[str]:
    found = []
    tallest = max(len(block) for block in blocks)
    for index in range(tallest):
        line = ""
        for block, matrix in zip(blocks, matrices, strict=True):
            # The sign stands in the first row of numbers.
            gap = f" {matrix.sign if index == 1 else '':1} " if line else ""
            line += gap + (block[index] if index < len(block) else " " * len(block[0]))
        found.append(line.rstrip())
    return [*found, ""]


def _table(matrix: Matrix) -> str:
    reach = max(float(np.abs(matrix.values_hw).max(initial=0.0)), 1e-30)
    rows = []
    for values, texts in zip(
        matrix.values_hw, written(matrix.values_hw, matrix.outside_hw), strict=True
    ):
        cells = "".join(
            _cell(text, value / reach) for value, text in zip(values, texts, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    sign = f'<b class="sign">{escape(matrix.sign)}</b>' if matrix.sign else ""
    return (
        f'<div class="term">{sign}<table class="numbers">'
        f"<caption>{escape(titled(matrix))}</caption><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(text: str, share: float) -> str:
    if text == "pad":
        return '<td class="pad">pad</td>'
    colour = "below" if share < 0 else "above"
    return f'<td class="{colour}" style="--share:{abs(share):.2f}">{text}</td>'
