"""How the gradients of a run's layers grew and shrank, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from models.errors import BadRequest
from models.messages import one_line
from training.inside.pictures import (
    INK,
    MARGIN_PX,
    RAMP_RGB,
    SOFT,
    blank_sheet,
    coloured,
    cut,
    font,
)
from training.runs.run import Run

NAMES = 220
"""Width of the names, in pixels."""
WIDTH = 620
"""Of the map."""
ROW = 14
MOST_DECADES = 6
NOTHING_RGB = (235, 238, 242)


@dataclass(frozen=True, kw_only=True)
class History:
    """The norm of each module's gradient at the end of each epoch, before clipping."""

    title: str
    epochs: tuple[int, ...]
    phases: tuple[str, ...]
    """Of each epoch."""
    modules: tuple[str, ...]
    """From the image to the answer."""
    norms: tuple[tuple[float | None, ...], ...]
    """For each module, over the epochs; None: it was frozen, or too large for half precision."""


def history(run: Run) -> History:
    """What *run* has recorded. Raises `BadRequest` for a run of before, which has nothing."""
    lines = run.metrics()
    recorded = [line for line in lines if line["gradient_norms"]]
    if not recorded:
        begun = "was made before gradients were recorded" if lines else "has no finished epoch yet"
        raise BadRequest(
            f"run {one_line(str(run.path))} {begun}. Train again to see them over training, or give"
            " a photo to see what flows back in this network"
        )
    # Fine-tuning has all modules in their order; the probe has the head alone.
    names = max((list(line["gradient_norms"]) for line in recorded), key=len)
    others = {name for line in recorded for name in line["gradient_norms"]} - set(names)
    modules = [*names, *sorted(others)]
    return History(
        title=f"{run.config.network} of run {one_line(str(run.path))}",
        epochs=tuple(line["epoch"] for line in lines),
        phases=tuple(line["phase"] for line in lines),
        modules=tuple(modules),
        norms=tuple(tuple(line["gradient_norms"].get(name) for line in lines) for name in modules),
    )


def sentences(found: History) -> list[str]:
    """Where the gradients are largest and smallest at the end, and whether they die out."""
    last = {name: row[-1] for name, row in zip(found.modules, found.norms, strict=True) if row[-1]}
    lines = [
        (
            f"{len(found.epochs)} epochs, {len(found.modules)} modules. A norm is that of an"
            " epoch's last step, weights and bias together, before clipping."
        )
    ]
    if last:
        high, low = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
        lines.append(
            f"In the last epoch the largest is {last[high]:.3g} ({high}), the smallest"
            f" {last[low]:.3g} ({low})."
        )
    return lines


def history_picture(found: History) -> Image.Image:
    """Modules from top to bottom, epochs from left to right, norms as colours."""
    low, high = _decades(found)
    legend = (
        f"Dark is 1e{low} and less, yellow 1e{high} and more, in powers of ten. Grey: nothing was"
        " recorded, since the module was frozen."
    )
    cell = max(2, min(48, WIDTH // len(found.epochs)))
    width, height = cell * len(found.epochs), ROW * len(found.modules)
    sheet_px = NAMES + max(width, 360) + 2 * MARGIN_PX
    title = f"Gradients over training: {found.title}"
    drawn, top = blank_sheet(sheet_px, height + 40, title=title, lines=[*sentences(found), legend])
    draw = ImageDraw.Draw(drawn)
    left, top = MARGIN_PX + NAMES, top + 4
    for row, (name, norms) in enumerate(zip(found.modules, found.norms, strict=True)):
        y = top + row * ROW
        text = cut(name, NAMES - 8)
        draw.text((left - 6, y + ROW / 2), text, INK, font(11), anchor="rm")
        for column, norm in enumerate(norms):
            x = left + column * cell
            colour = NOTHING_RGB if norm is None else _colour(norm, low, high)
            draw.rectangle((x, y, x + cell - 1, y + ROW - 1), colour)
    _axis(draw, found, cell, left, top + height)
    return drawn


def history_json(found: History) -> dict[str, Any]:
    """The norms by module, a number or null for each epoch."""
    return {
        "title": found.title,
        "epochs": list(found.epochs),
        "phases": list(found.phases),
        "gradient_norms": dict(zip(found.modules, map(list, found.norms), strict=True)),
    }


def _axis(draw: ImageDraw.ImageDraw, found: History, cell: int, left: int, y: int) -> None:
    """The numbers of epochs, as many as fit, and where the fine-tuning begins."""
    every = max(1, math.ceil(28 / cell))
    for column, epoch in enumerate(found.epochs):
        if column % every == 0:
            x = left + column * cell + cell / 2
            draw.text((x, y + 4), str(epoch), SOFT, font(11), anchor="ma")
    words = " then ".join(
        "probe, which trains the head alone" if phase == "probe" else phase
        for phase in dict.fromkeys(found.phases)
    )
    draw.text((left, y + 20), f"epoch ({words})", SOFT, font(11))


def _decades(found: History) -> tuple[int, int]:
    values: Sequence[float] = [norm for row in found.norms for norm in row if norm]
    if not values:
        return -1, 0
    high = math.ceil(math.log10(max(values)))
    return max(min(math.floor(math.log10(min(values))), high - 1), high - MOST_DECADES), high


def _colour(norm: float, low: int, high: int) -> tuple[int, int, int]:
    import numpy as np

    power = math.log10(norm) if norm > 0.0 else float(low)
    red, green, blue = coloured(np.array([[power]]), low, high, RAMP_RGB).getpixel((0, 0))  # type: ignore[misc]
    return int(red), int(green), int(blue)
