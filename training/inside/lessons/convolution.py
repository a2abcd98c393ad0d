"""`loupe inspect convolution`: one output value worked out by hand, and the way back from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.inside.lessons.backward import (
    Arriving,
    Backward,
    arriving_gradients,
    backward,
)
from training.inside.lessons.numbers import Matrix, short
from training.inside.lessons.part import Part
from training.inside.lessons.pooling import PooledPatch, pooled_patch
from training.inside.lessons.window import Floats, LayerValues, Window, layer_values, window_at
from training.inside.subject import InspectedNetwork

SUMS = 8
"""Input channels whose sums are listed, largest first."""
ALL = 3
"""Up to so many input channels a page shows every patch; of more, the first of the list."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One output value of a layer, forwards and, if asked for, backwards."""

    title: str
    values: LayerValues
    window: Window
    arriving: Arriving | None = None
    """None: the way back was not asked for."""
    back: Backward | None = None
    """Of a convolution."""
    pooled: PooledPatch | None = None


def lesson(
    subject: InspectedNetwork,
    image: Path,
    name: str,
    *,
    channel: int | None = None,
    place: tuple[int, int] | None = None,
    backwards: bool = False,
) -> Lesson:
    """The lesson on layer *name*, for filter *channel* at *place*.

    Without *channel* or *place* it is about the strongest answer, or *backwards* about the place
    where the largest gradient arrives. Raises what `layer_values`, `window_at` and
    `arriving_gradients` raise.
    """
    values = layer_values(subject, image, name)
    arriving = arriving_gradients(subject, values) if backwards else None
    strength_Dhw = np.abs(arriving.gradient_Dhw) if arriving else None
    window = window_at(values, channel, place, strength_Dhw=strength_Dhw)
    convolution = values.kernel_DIhw is not None
    return Lesson(
        title=(
            f"{values.layer.name} ({values.layer.kind}) of {subject.title}:"
            f" {'filter' if convolution else 'channel'} {window.filter},"
            f" row {window.row}, column {window.column}"
        ),
        values=values,
        window=window,
        arriving=arriving,
        back=backward(values, window, arriving) if arriving and convolution else None,
        pooled=pooled_patch(values, window) if arriving and convolution else None,
    )


def by_strength(window: Window) -> list[int]:
    """Positions of the input channels, those that add or take most first."""
    return [int(part) for part in np.argsort(-np.abs(window.sums_I), kind="stable")]


def matrices(window: Window, part: int) -> list[Matrix]:
    """Patch, kernel and products of one input channel."""
    outside_hw = ~window.inside_hw
    return [
        Matrix(title="patch", values_hw=window.patch_Ihw[part], outside_hw=outside_hw),
        Matrix(title="kernel", values_hw=window.weights_Ihw[part], sign="x"),
        Matrix(title="products", values_hw=window.products_Ihw[part], sign="="),
    ]


def forward_parts(found: Lesson) -> list[Part]:
    """What is shown of the way forwards."""
    if found.values.kernel_DIhw is None:
        return [_pooling(found)]
    window = found.window
    strongest = by_strength(window)
    first = found.values.channel_name(window.channels[strongest[0]]).capitalize()
    more = len(window.channels) > 1
    return [
        Part(title="The window", sentences=_where(found)),
        Part(
            title=f"{first}: the one that changes the sum most" if more else first,
            sentences=(
                "Each value of the patch is multiplied by the weight at its place in the kernel.",
            ),
            matrices=[matrices(window, strongest[0])],
        ),
        Part(
            title="The sum",
            columns=("", "value"),
            rows=_sums(found.values, window, strongest),
            after=(_checked(window), *_activated(found), *_remarks(found.values)),
        ),
    ]


def document(found: Lesson) -> dict[str, Any]:
    """The lesson as JSON; places are row and column, kernels go input channel by input channel."""
    window, values = found.window, found.values
    return {
        "layer": values.layer.name,
        "kind": values.layer.kind,
        "filter": window.filter,
        "at": [window.row, window.column],
        "input_channels": list(window.channels),
        "rows": list(window.rows),
        "columns": list(window.columns),
        "padding": (~window.inside_hw).tolist(),
        "patch": window.patch_Ihw.tolist(),
        "kernel": window.weights_Ihw.tolist(),
        "products": window.products_Ihw.tolist(),
        "sums": window.sums_I.tolist(),
        "bias": window.bias,
        "total": window.total,
        "value": window.value,
        "tolerance": window.tolerance,
        "equal": window.equal,
        **({"backward": _back_document(found.back)} if found.back else {}),
        **(
            {"passes_back": passed_back(found).tolist()}
            if found.arriving and not found.back
            else {}
        ),
    }


def passed_back(found: Lesson) -> Floats:
    """What the window's values [h,w] get from a pooling."""
    back_hw: Floats = found.window.weights_Ihw[0] * arriving_here(found)
    return back_hw


def arriving_here(found: Lesson) -> float:
    """The gradient that arrives at the window's value."""
    assert found.arriving is not None
    window = found.window
    return float(found.arriving.gradient_Dhw[window.filter, window.row, window.column])


def _where(found: Lesson) -> list[str]:
    window, values = found.window, found.values
    layer = values.layer
    size = "x".join(map(str, values.input_Chw.shape[1:]))
    told = [
        (
            f"The layer reads {len(values.input_Chw)} channels of {size} values. Its window covers"
            f" {_range('row', window.rows)} and {_range('column', window.columns)}."
        )
    ]
    if values.reads_photo:
        told.append("It reads the photo: red, green and blue, as the network normalises them.")
    down, across, *dilation = values.spread
    if max(down, across) > 1:
        step = str(down) if down == across else f"{down} down and {across} across"
        told.append(
            f"Stride {step}: the window of the next output value lies {step} cells further."
        )
    if max(dilation) > 1:
        told.append(
            f"Dilation {max(dilation)}: between the cells that it reads it leaves some out."
        )
    if not window.inside_hw.all():
        told.append("Cells marked `pad` lie outside of the map: padding, which counts as 0.")
    if layer.groups > 1:
        told.append(_grouped(values, window))
    return told


def _grouped(values: LayerValues, window: Window) -> str:
    inputs, cells = len(values.input_Chw), window.inside_hw.size
    read = len(window.channels)
    return (
        f"{values.layer.groups} groups: each filter reads {read} of the {inputs} channels. That"
        f" takes {cells * read:,} products; reading all channels would take {cells * inputs:,}."
    )


def _range(word: str, indices: tuple[int, ...]) -> str:
    if len(indices) == 1:
        return f"{word} {indices[0]}"
    return f"{word}s {indices[0]} to {indices[-1]}"


def _sums(values: LayerValues, window: Window, strongest: list[int]) -> list[list[str]]:
    sums_I = window.sums_I
    rows = [
        [values.channel_name(window.channels[part]), f"{sums_I[part]:.6g}"] for part in strongest
    ]
    if len(rows) > SUMS:
        rest = sum(float(sums_I[part]) for part in strongest[SUMS:])
        rows = [*rows[:SUMS], [f"{len(rows) - SUMS} other channels", f"{rest:.6g}"]]
    if window.bias is not None:
        rows.append(["bias", f"{window.bias:.6g}"])
    return [*rows, ["sum", f"{window.total:.6g}"], ["in the network", f"{window.value:.6g}"]]


def _checked(window: Window) -> str:
    difference = abs(window.total - window.value)
    if window.equal:
        return (
            f"By hand and in the network: equal. They differ by {difference:.1e}; rounding"
            f" allows {window.tolerance:.1e}."
        )
    return (
        f"By hand and in the network they differ by {difference:.1e}, more than rounding allows"
        f" ({window.tolerance:.1e}). Please report this."
    )


def _activated(found: Lesson) -> list[str]:
    if found.values.activated is None:
        return []
    layer, values_Dhw = found.values.activated
    value = values_Dhw[found.window.filter, found.window.row, found.window.column]
    return [f"The activation that follows, {layer.kind}, makes {short(value)} of it."]


def _remarks(values: LayerValues) -> list[str]:
    told = ["The kernel is not flipped. Mathematics calls this a cross-correlation."]
    if values.bias_D is not None:
        told.append(
            "If the network was trained with batch normalisation after this convolution, export has"
            " folded it in: each filter is multiplied by gamma / sqrt(variance + epsilon), and the"
            " bias is moved to match."
        )
    return told


def _pooling(found: Lesson) -> Part:
    window, is_max = found.window, found.values.kind == "max pooling"
    shares = Matrix(
        title="the winner" if is_max else "shares", values_hw=window.weights_Ihw[0], sign="x"
    )
    patch, _, products = matrices(window, 0)
    what = (
        "The largest value of the patch is the answer."
        if is_max
        else "The answer is the mean: each value has an equal share."
    )
    return Part(
        title="The window",
        sentences=(*_where(found), what),
        matrices=[
            [patch] if is_max else [patch, shares, products],
            *([[shares]] if is_max else []),
        ],
        columns=("", "value"),
        rows=_sums(found.values, window, [0])[1:],
        after=(_checked(window),),
    )


def _back_document(back: Backward) -> dict[str, Any]:
    return {
        "label": back.label,
        "score": back.score,
        "arriving": back.arriving,
        "kernel": back.kernel_Ihw.tolist(),
        "bias": back.bias,
        "input": {
            "at": list(back.received),
            "from_this_filter": sum(term.product for term in back.input_terms),
            "from_all_filters": back.input_all,
        },
        "difference_from_torch": back.difference,
    }
