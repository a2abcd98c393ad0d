"""The way back: what a gradient that arrives at a layer's output does to kernel, bias and input.

Letters used in shapes: C and D channels of input and output, I channels that one filter reads, h
and w cells of a map or a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.errors import BadRequest
from models.networks.onnx_in_torch import OnnxNetwork
from training.inside.gradients import LOGITS
from training.inside.lessons.window import Floats, LayerValues, Window
from training.inside.subject import InspectedNetwork

SHOWN = 5
"""Terms of a sum that are written out, largest first."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One product of a sum: a gradient that arrives, times a number."""

    filter: int
    row: int
    column: int
    """The output cell."""
    arriving: float
    factor: float
    """A value of the input, or a weight."""

    @property
    def product(self) -> float:
        """What the term adds."""
        return self.arriving * self.factor


@dataclass(frozen=True, kw_only=True)
class Backward:
    """The gradients of one filter, and of one value that it reads."""

    label: str
    score: float
    arriving: float
    """At the output value of the window."""
    kernel_Ihw: Floats
    """Gradient of the filter's kernel: the sum over every place where it was used."""
    bias: float
    """Gradient of the bias: the sum of the map of gradients that arrive."""
    weight: tuple[int, int, int]
    """The weight with the largest gradient: input channel, row and column in the kernel."""
    places: int
    """Output cells that used this weight on a value that is no padding."""
    weight_terms: tuple[Term, ...]
    """Its largest terms."""
    received: tuple[int, int, int]
    """The input value: channel, row, column."""
    input_terms: tuple[Term, ...]
    """Every term of what this input value gets, from this filter."""
    input_all: float
    """What it gets from all filters of the layer."""
    difference: float
    """Largest difference from torch's own gradients, relative to the largest gradient."""


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """The gradient of the answer's score at a layer's output."""

    label: str
    """The class whose score is asked about: the answer."""
    score: float
    """Its logit."""
    gradient_Dhw: Floats


def arriving_gradients(subject: InspectedNetwork, values: LayerValues) -> Arriving:
    """The gradient of the answer's score at the layer's output.

    Raises `PackageError` with the operation that gradients cannot be taken through.
    """
    if subject.model is None or LOGITS not in subject.outputs:
        raise BadRequest(
            f"{subject.title} has no output {LOGITS!r}, so no gradient can start there"
        )
    network = OnnxNetwork(subject.model, [LOGITS, values.layer.output])
    photo = torch.from_numpy(values.pixels_HWC.astype(np.float32))[None].requires_grad_()
    logits_NK, map_NDhw = network(photo)
    index = int(logits_NK[0].argmax())
    [gradient_NDhw] = torch.autograd.grad(logits_NK[0, index], map_NDhw)
    label = subject.labels[index] if subject.labels else str(index)
    return Arriving(
        label=label,
        score=float(logits_NK[0, index].detach()),
        gradient_Dhw=gradient_NDhw[0].double().numpy(),
    )


def backward(values: LayerValues, window: Window, arriving: Arriving) -> Backward:
    """The way back through a convolution: from what arrives to the numbers of *window*."""
    assert values.kernel_DIhw is not None
    arriving_Dhw = arriving.gradient_Dhw
    kernel_Ihw = kernel_gradient(values, window, arriving_Dhw[window.filter])
    part, row, column = _largest(kernel_Ihw)
    terms = list(_weight_terms(values, window, arriving_Dhw, (part, row, column)))
    received = _strongest_input(window)
    inputs = list(input_terms(values, arriving_Dhw, received))
    return Backward(
        label=arriving.label,
        score=arriving.score,
        arriving=float(arriving_Dhw[window.filter, window.row, window.column]),
        kernel_Ihw=kernel_Ihw,
        bias=float(arriving_Dhw[window.filter].sum()),
        weight=(window.channels[part], row, column),
        places=len(terms),
        weight_terms=tuple(sorted(terms, key=lambda term: -abs(term.product))[:SHOWN]),
        received=received,
        input_terms=tuple(term for term in inputs if term.filter == window.filter),
        input_all=sum(term.product for term in inputs),
        difference=_difference(
            values,
            window,
            arriving_Dhw,
            kernel_Ihw,
            received,
            sum(term.product for term in inputs),
        ),
    )


def kernel_gradient(values: LayerValues, window: Window, arriving_hw: Floats) -> Floats:
    """The gradient [I,h,w] of the kernel of *window*, given the one of its map."""
    top, left, bottom, right = values.padding
    down, across, row_step, column_step = values.spread
    padded_Ihw = np.pad(
        values.input_Chw[list(window.channels)], ((0, 0), (top, bottom), (left, right))
    )
    height, width = arriving_hw.shape
    gradient_Ihw = np.zeros(window.weights_Ihw.shape)
    for row, column in np.ndindex(gradient_Ihw.shape[1:]):
        # The input values that this weight met, one for each output cell.
        met_Ihw = padded_Ihw[:, row * row_step :: down, column * column_step :: across]
        gradient_Ihw[:, row, column] = (met_Ihw[:, :height, :width] * arriving_hw).sum((1, 2))
    return gradient_Ihw


def input_terms(
    values: LayerValues, arriving_Dhw: Floats, place: tuple[int, int, int]
) -> Iterator[Term]:
    """Every term of what the input value at *place* gets: each window that covered it.

    *place* is channel, row and column.
    """
    assert values.kernel_DIhw is not None
    filters, inputs, height, width = values.kernel_DIhw.shape
    group, part = divmod(place[0], inputs)
    size = filters // values.layer.groups
    for row, column in np.ndindex(height, width):
        cell = _cell(values, (place[1], place[2]), (row, column), arriving_Dhw.shape[1:])
        if cell is None:
            continue
        for channel in range(group * size, (group + 1) * size):
            yield Term(
                filter=channel,
                row=cell[0],
                column=cell[1],
                arriving=float(arriving_Dhw[channel, *cell]),
                factor=float(values.kernel_DIhw[channel, part, row, column]),
            )


def _cell(
    values: LayerValues, place: tuple[int, int], step: tuple[int, int], size: tuple[int, ...]
) -> tuple[int, int] | None:
    """The output cell whose window has the input's *place* at *step*; None if there is none."""
    cells = []
    for axis in (0, 1):
        stride, dilation = values.spread[axis], values.spread[2 + axis]
        cell, rest = divmod(place[axis] + values.padding[axis] - step[axis] * dilation, stride)
        if rest or not 0 <= cell < size[axis]:
            return None
        cells.append(cell)
    return cells[0], cells[1]


def _weight_terms(
    values: LayerValues, window: Window, arriving_Dhw: Floats, weight: tuple[int, int, int]
) -> Iterator[Term]:
    """Every term of one weight's gradient, apart from those that met padding."""
    part, row, column = weight
    down, across, row_step, column_step = values.spread
    input_hw = values.input_Chw[window.channels[part]]
    for y, x in np.ndindex(arriving_Dhw.shape[1:]):
        at = (
            y * down - values.padding[0] + row * row_step,
            x * across - values.padding[1] + column * column_step,
        )
        if 0 <= at[0] < input_hw.shape[0] and 0 <= at[1] < input_hw.shape[1]:
            yield Term(
                filter=window.filter,
                row=y,
                column=x,
                arriving=float(arriving_Dhw[window.filter, y, x]),
                factor=float(input_hw[at]),
            )


def _strongest_input(window: Window) -> tuple[int, int, int]:
    """Channel, row and column of the input value that adds most to the window's value."""
    # More than 0, so that padding is never the largest.
    sizes_Ihw = np.where(window.inside_hw, np.abs(window.products_Ihw) + 1e-300, 0.0)
    part, row, column = _largest(sizes_Ihw)
    return window.channels[part], window.rows[row], window.columns[column]


def _largest(values_Ihw: Floats) -> tuple[int, int, int]:
    found = np.unravel_index(int(np.abs(values_Ihw).argmax()), values_Ihw.shape)
    return int(found[0]), int(found[1]), int(found[2])


def torch_gradients(values: LayerValues, arriving_Dhw: Floats) -> tuple[Floats, Floats, Floats]:
    """The gradients of input, kernel and bias that torch gives for this layer, in float64."""
    assert values.kernel_DIhw is not None
    top, left, bottom, right = values.padding
    given = torch.from_numpy(values.input_Chw)[None].requires_grad_()
    kernel = torch.from_numpy(values.kernel_DIhw).requires_grad_()
    bias = torch.zeros(len(kernel), dtype=torch.float64, requires_grad=True)
    result = F.conv2d(
        F.pad(given, (left, right, top, bottom)),
        kernel,
        bias,
        stride=values.spread[:2],
        dilation=values.spread[2:],
        groups=values.layer.groups,
    )
    result.backward(torch.from_numpy(arriving_Dhw)[None])  # type: ignore[no-untyped-call]
    found = [part.grad for part in (given, kernel, bias)]
    input_N, kernel_DIhw, bias_D = (part.numpy() for part in found if part is not None)
    return input_N[0], kernel_DIhw, bias_D


def _difference(
    values: LayerValues,
    window: Window,
    arriving_Dhw: Floats,
    kernel_Ihw: Floats,
    received: tuple[int, int, int],
    input_all: float,
) -> float:
    input_Chw, kernel_DIhw, bias_D = torch_gradients(values, arriving_Dhw)
    pairs = (
        (kernel_Ihw, kernel_DIhw[window.filter], kernel_DIhw),
        (arriving_Dhw[window.filter].sum(), bias_D[window.filter], bias_D),
        (input_all, input_Chw[received], input_Chw),
    )
    return max(
        float(np.abs(ours - theirs).max() / max(float(np.abs(whole).max()), 1e-30))
        for ours, theirs, whole in pairs
    )
