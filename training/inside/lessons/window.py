"""The arithmetic of one output value of a convolution or a pooling, with the network's numbers.

Letters used in shapes: C and D channels of input and output, I channels that one filter reads, h
and w cells of a map or a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import BadRequest
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer, layer_named
from training.inside.subject import InspectedNetwork, photo_pixels

Floats = NDArray[np.float64]
WINDOWED = {"Conv": "convolution", "MaxPool": "max pooling", "AveragePool": "average pooling"}
"""ONNX's name of an operation with a window -> ours."""
RGB = ("red", "green", "blue")
ACTIVATIONS = frozenset({"ReLU", "ReLU6", "hard-swish", "SiLU", "GELU", "leaky ReLU"})


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """What one layer reads, holds and gives for one photo."""

    layer: Layer
    kind: str
    """One of `WINDOWED`."""
    source: str
    """Name of the value that it reads."""
    pixels_HWC: NDArray[np.uint8]
    """What the network was given."""
    input_Chw: Floats
    output_Dhw: Floats
    kernel_DIhw: Floats | None = None
    """None: a pooling."""
    bias_D: Floats | None = None
    epsilon: float
    """Relative rounding of one operation in the network's number format."""
    activated: tuple[Layer, Floats] | None = None
    """The activation that follows, and what it makes of the output; None: none follows."""
    reads_photo: bool = False
    """The input is the photo: red, green and blue, as the network normalises them."""
    counts_padding: bool = False
    """An average pooling divides by the size of the window, padding included."""

    def channel_name(self, channel: int) -> str:
        """`input channel 1`, with its colour where it is one of the photo's."""
        return f"input channel {channel}" + (f" ({RGB[channel]})" if self.reads_photo else "")

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        return self.layer.padding or (0, 0, 0, 0)

    @property
    def spread(self) -> tuple[int, int, int, int]:
        """Stride and dilation: down, across, down, across."""
        return (*(self.layer.stride or (1, 1)), *(self.layer.dilation or (1, 1)))


@dataclass(frozen=True, kw_only=True)
class Window:
    """One output value, and everything that it is made of."""

    filter: int
    """The output channel."""
    row: int
    column: int
    channels: tuple[int, ...]
    """Input channels that are read."""
    rows: tuple[int, ...]
    """Rows of the input under the window; those outside of the map are padding."""
    columns: tuple[int, ...]
    inside_hw: NDArray[np.bool_]
    """False: padding."""
    patch_Ihw: Floats
    """Padding is 0."""
    weights_Ihw: Floats
    """The kernel. Of average pooling the shares, of max pooling 1 for the winner and 0 else."""
    bias: float | None
    """None: the layer has none."""
    value: float
    """What the network has there."""
    tolerance: float
    """How far rounding can part `total` from `value`."""

    @property
    def products_Ihw(self) -> Floats:
        """Patch times weights."""
        return self.patch_Ihw * self.weights_Ihw

    @property
    def sums_I(self) -> Floats:
        """The products of each input channel, added up."""
        sums_I: Floats = self.products_Ihw.sum(axis=(1, 2))
        return sums_I

    @property
    def total(self) -> float:
        """The value by hand, in float64."""
        return float(self.products_Ihw.sum()) + (self.bias or 0.0)

    @property
    def equal(self) -> bool:
        """Whether the network has the value that was worked out by hand, up to rounding."""
        return abs(self.total - self.value) <= self.tolerance


def layer_values(subject: InspectedNetwork, image: Path, name: str) -> LayerValues:
    """The numbers of layer *name* of *subject* for the photo *image*.

    Raises `UnknownLayer`, `BadRequest` for a layer without a window, and `RequestError` for an
    image that cannot be used.
    """
    import onnx

    layer = layer_named(subject.layers, name)
    assert subject.encoded is not None
    graph = onnx.ModelProto.FromString(subject.encoded).graph
    node = next(node for node in graph.node if layer.output in node.output)
    if node.op_type not in WINDOWED or layer.kernel is None:
        raise BadRequest(_no_window(subject, layer))
    names = [name for name in node.input if name]
    pixels_HWC = photo_pixels(image, subject.spec)
    # One session for everything: an int8 weight is turned back as the network does it.
    follows = _activation(subject, layer)
    wanted = [layer.output, *([follows.output] if follows else []), *names]
    session = session_with_outputs(subject.encoded, wanted)
    result, *found = feature_maps(session, pixels_HWC[np.newaxis])
    activated = (follows, found.pop(0)[0].astype(np.float64)) if follows else None
    given, *held = found
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    weights = [np.asarray(values, np.float64) for values in held]
    return LayerValues(
        layer=layer,
        kind=WINDOWED[node.op_type],
        source=names[0],
        pixels_HWC=pixels_HWC,
        input_Chw=given[0].astype(np.float64),
        output_Dhw=result[0].astype(np.float64),
        kernel_DIhw=weights[0] if weights else None,
        bias_D=weights[1] if len(weights) > 1 else None,
        activated=activated,
        reads_photo=len(given[0]) == len(RGB) and _is_first(subject, layer),
        epsilon=float(np.finfo(result.dtype).eps),
        counts_padding=bool(attributes.get("count_include_pad", 0)),
    )


def window_at(
    values: LayerValues,
    channel: int | None = None,
    place: tuple[int, int] | None = None,
    *,
    strength_Dhw: Floats | None = None,
) -> Window:
    """The output value of filter *channel* at *place*, row and column.

    What is None is chosen: where *strength_Dhw* is largest, by default the output. Raises
    `BadRequest` for a filter or place that the layer does not have.
    """
    filters, height, width = values.output_Dhw.shape
    if channel is not None and not 0 <= channel < filters:
        raise BadRequest(
            f"--filter {channel}: layer {values.layer.name} has filters 0 to {filters - 1}"
        )
    if place is not None and not (0 <= place[0] < height and 0 <= place[1] < width):
        raise BadRequest(
            f"--at {place[0]},{place[1]}: the map of {values.layer.name} has rows 0 to"
            f" {height - 1} and columns 0 to {width - 1}"
        )
    strength_Dhw = values.output_Dhw if strength_Dhw is None else strength_Dhw
    return _window(values, *_strongest(strength_Dhw, channel, place))


def _is_first(subject: InspectedNetwork, layer: Layer) -> bool:
    """Whether no layer with weights or a window comes before *layer*."""
    before = subject.layers[: subject.layers.index(layer)]
    return not any(item.kernel or item.multiply_adds for item in before)


def _activation(subject: InspectedNetwork, layer: Layer) -> Layer | None:
    return next(
        (
            item
            for item in subject.layers
            if layer.name in item.inputs and item.kind in ACTIVATIONS and item.shape == layer.shape
        ),
        None,
    )


def _strongest(
    strength_Dhw: Floats, channel: int | None, place: tuple[int, int] | None
) -> tuple[int, int, int]:
    """Filter, row and column of the largest value among those that are asked for."""
    filters = slice(None) if channel is None else slice(channel, channel + 1)
    rows = columns = slice(None)
    if place is not None:
        rows, columns = (slice(part, part + 1) for part in place)
    chosen_Dhw = strength_Dhw[filters, rows, columns]
    best = np.unravel_index(int(chosen_Dhw.argmax()), chosen_Dhw.shape)
    starts = (filters.start or 0, rows.start or 0, columns.start or 0)
    first, second, third = (int(part) + start for part, start in zip(best, starts, strict=True))
    return first, second, third


def _window(values: LayerValues, channel: int, row: int, column: int) -> Window:
    assert values.layer.kernel is not None
    height, width = values.input_Chw.shape[1:]
    rows, columns = (
        tuple(cell * stride - before + dilation * step for step in range(length))
        for cell, stride, before, dilation, length in zip(
            (row, column),
            values.spread[:2],
            values.padding[:2],
            values.spread[2:],
            values.layer.kernel,
            strict=True,
        )
    )
    inside_hw = np.outer(
        [0 <= index < height for index in rows], [0 <= index < width for index in columns]
    )
    channels = _channels_read(values, channel)
    at = np.ix_(np.array(channels), np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))
    patch_Ihw = np.where(inside_hw, values.input_Chw[at], 0.0)
    weights_Ihw = _weights(values, channel, rows, columns, inside_hw, patch_Ihw)
    bias = None if values.bias_D is None else float(values.bias_D[channel])
    size = float(np.abs(patch_Ihw * weights_Ihw).sum()) + abs(bias or 0.0)
    return Window(
        filter=channel,
        row=row,
        column=column,
        channels=channels,
        rows=rows,
        columns=columns,
        inside_hw=inside_hw,
        patch_Ihw=patch_Ihw,
        weights_Ihw=weights_Ihw,
        bias=bias,
        value=float(values.output_Dhw[channel, row, column]),
        # Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", eq. 3.5.
        tolerance=(patch_Ihw.size + 1) * values.epsilon * size,
    )


def _channels_read(values: LayerValues, channel: int) -> tuple[int, ...]:
    if values.kernel_DIhw is None:
        return (channel,)
    filters, inputs = values.kernel_DIhw.shape[:2]
    first = channel // (filters // values.layer.groups) * inputs
    return tuple(range(first, first + inputs))


def _weights(
    values: LayerValues,
    channel: int,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    inside_hw: NDArray[np.bool_],
    patch_Ihw: Floats,
) -> Floats:
    if values.kernel_DIhw is not None:
        kernel_Ihw: Floats = values.kernel_DIhw[channel]
        return kernel_Ihw
    if values.kind == "max pooling":
        winner_hw = np.zeros(inside_hw.shape)
        # The first of equal values, as in torch.
        winner_hw.flat[int(np.where(inside_hw, patch_Ihw[0], -np.inf).argmax())] = 1.0
        return winner_hw[np.newaxis]
    counted_hw = inside_hw
    if values.counts_padding:
        # Cells beyond the padding, which rounding up adds, are never counted.
        bottom, right = (
            size + after
            for size, after in zip(values.input_Chw.shape[1:], values.padding[2:], strict=True)
        )
        counted_hw = np.outer([row < bottom for row in rows], [col < right for col in columns])
    shares_hw: Floats = counted_hw / counted_hw.sum()
    return shares_hw[np.newaxis]


def _no_window(subject: InspectedNetwork, layer: Layer) -> str:
    known = [item.name for item in subject.layers if item.kernel is not None]
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return (
        f"layer {layer.name} ({layer.kind}) moves no window over a map; expected a convolution or a"
        f" pooling: {shown or 'this network has none'}"
    )
