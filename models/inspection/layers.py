"""The layers of a network in words and numbers: shape and its formula, parameters, cost, field.

Letters used in shapes: C channels, h and w cells of a feature map.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from models.errors import UnknownLayer
from models.inspection.field_rules import receptive_fields, window
from models.inspection.operations import Operation
from models.inspection.receptive_field import Field

WORDS = {
    "Conv": "convolution",
    "Gemm": "linear",
    "MatMul": "linear",
    "MaxPool": "max pooling",
    "AveragePool": "average pooling",
    "AdaptiveAveragePool": "average pooling",
    "GlobalAveragePool": "global average pooling",
    "ReduceMean": "mean",
    "BatchNormalization": "batch normalisation",
    "LayerNormalization": "layer normalisation",
    "GroupNormalization": "group normalisation",
    "InstanceNormalization": "instance normalisation",
    "Relu": "ReLU",
    "Clip": "ReLU6",
    "HardSwish": "hard-swish",
    "HardSigmoid": "hard-sigmoid",
    "Silu": "SiLU",
    "Gelu": "GELU",
    "LeakyRelu": "leaky ReLU",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Concat": "concatenate",
    "Pad": "pad",
}
"""ONNX's name of an operation -> ours. An operation that is not here keeps ONNX's."""
PLUMBING = frozenset(
    {
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Slice",
        "Split",
        "Expand",
    }
)
"""Operations that move values and compute none. They are no layers."""


NAME_SHOWN, NEAR, NAMED_MAX = 80, 3, 200
"""Characters of a wrong name that an error repeats, near names it suggests, and names it lists."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a network, for one image."""

    name: str
    """Unique: the module in the network, such as `features.0.0`, or the name of the output."""
    kind: str
    """In words, such as `depthwise convolution`."""
    output: str
    """Name of its value in the graph."""
    inputs: tuple[str, ...]
    """Names of the layers that it reads."""
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """C, h, w of a feature map, or the number of values. As in the graph, without the batch."""
    kernel: tuple[int, int] | None = None
    """Height and width, in cells of the input."""
    stride: tuple[int, int] | None = None
    padding: tuple[int, int, int, int] | None = None
    """Top, left, bottom, right."""
    dilation: tuple[int, int] | None = None
    groups: int = 1
    rounds_up: bool = False
    parameters: int
    multiply_adds: int
    """Of convolutions and linear layers; 0 for all others, as is usual."""
    bytes_moved: int
    """Read and written: input, output and parameters, each once."""
    field: Field | None
    """Its receptive field; None: an operation on the way has none that can be told."""
    measured_ms: float | None = None
    """Time in this machine's session; None: not measured."""

    @property
    def formula(self) -> str:
        """How the height follows from the input's, with numbers; empty without a window.

        The width follows where it differs.
        """
        if self.kernel is None:
            return ""
        parts = [self._axis(0)]
        if self._axis(1) != parts[0]:
            parts.append(self._axis(1))
        return "; ".join(parts)

    @property
    def window(self) -> str:
        """Kernel, stride, padding, dilation and groups on a line; empty without a window."""
        if self.kernel is None or self.stride is None or self.padding is None:
            return ""
        words = ["x".join(map(str, self.kernel))]
        if self.stride != (1, 1):
            words.append(f"/{_one(self.stride)}")
        if any(self.padding):
            words.append(f"pad {_one(self.padding)}")
        if self.dilation != (1, 1):
            words.append(f"dilation {_one(self.dilation or ())}")
        if self.groups > 1:
            words.append(f"groups {self.groups}")
        return " ".join(words)

    def _axis(self, axis: int) -> str:
        assert self.kernel
        assert self.stride
        assert self.padding
        size, result = self.input_shape[1 + axis], self.shape[1 + axis]
        kernel, stride = self.kernel[axis], self.stride[axis]
        before, after = self.padding[axis], self.padding[axis + 2]
        dilation = self.dilation[axis] if self.dilation else 1
        padding = f"2·{before}" if before == after else f"{before} + {after}"
        reach = dilation * (kernel - 1) + 1
        exact = (size - reach + before + after) / stride
        shown = f"{kernel}" if dilation == 1 else f"({dilation}·({kernel} - 1) + 1)"
        quotient = f"({size} - {shown} + {padding}) / {stride}"
        if exact != int(exact):
            opening, closing = ("⌈", "⌉") if self.rounds_up else ("⌊", "⌋")
            quotient = f"{opening}{quotient}{closing}"
        return f"{quotient} + 1 = {result}"


def layers_of(
    operations: Sequence[Operation], image: str, *, channels_last: bool = False
) -> list[Layer]:
    """The layers that *operations* make, in order; plumbing is left out.

    *image* is the name of the image's value; *channels_last* tells whether it is [N,H,W,3].
    """
    fields = receptive_fields(operations, image, channels_last=channels_last)
    seen: Counter[str] = Counter()
    source: dict[str, str] = {}
    found = []
    for operation in operations:
        if operation.kind in PLUMBING:
            source[operation.output] = source.get(operation.inputs[0], operation.inputs[0])
            continue
        seen[operation.name] += 1
        again = f"#{seen[operation.name]}" if seen[operation.name] > 1 else ""
        layer = _layer(operation, fields[operation.output])
        layer = replace(
            layer,
            name=operation.name + again,
            inputs=tuple(source.get(name, name) for name in operation.inputs),
        )
        source[operation.output] = layer.name
        found.append(layer)
    return found


def layer_named(layers: Sequence[Layer], name: str) -> Layer:
    """The layer called *name*, by its own name or by its value's.

    Raises `UnknownLayer` with the nearest names, or with those that there are.
    """
    for layer in layers:
        if name in {layer.name, layer.output}:
            return layer
    names = [layer.name for layer in layers]
    asked = name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}..."
    near = difflib.get_close_matches(name[:NAME_SHOWN], names, n=NEAR)
    if near:
        raise UnknownLayer(
            f"no layer {asked!r}. Did you mean {' or '.join(near)}? The network has {len(names)}"
            " layers"
        )
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    raise UnknownLayer(f"no layer {asked!r}. There are: {', '.join(names[:NAMED_MAX])}{more}")


def _layer(operation: Operation, field: Field | None) -> Layer:
    map_shape = _channels_first(operation.shape, field)
    geometry: dict[str, object] = {}
    groups = operation.attributes.get("group", 1)
    assert isinstance(groups, int)
    if operation.kind in {"Conv", "MaxPool", "AveragePool"}:
        rows, columns = window(operation)
        geometry = {
            "kernel": (rows[0], columns[0]),
            "stride": (rows[1], columns[1]),
            "padding": (rows[2], columns[2], rows[3], columns[3]),
            "dilation": (rows[4], columns[4]),
            "rounds_up": operation.attributes.get("ceil_mode", 0) == 1,
        }
    inputs = sum(prod(shape) for shape in operation.input_shapes)
    return Layer(
        name=operation.name,
        kind=_kind(operation, groups),
        output=operation.output,
        inputs=operation.inputs,
        input_shape=operation.input_shapes[0][1:],
        shape=map_shape,
        groups=groups,
        parameters=operation.parameters,
        multiply_adds=_multiply_adds(operation),
        bytes_moved=(inputs + prod(operation.shape)) * operation.bytes_per_value
        + operation.parameters * operation.bytes_per_weight,
        field=field,
        **geometry,  # type: ignore[arg-type]  # one table for three kinds of layers
    )


def _kind(operation: Operation, groups: int) -> str:
    if operation.kind == "Conv" and groups > 1:
        depthwise = groups == operation.input_shapes[0][1]
        return "depthwise convolution" if depthwise else "grouped convolution"
    if operation.kind == "MatMul" and len(operation.shape) == 4 and not operation.parameters:
        return "average pooling"
    if operation.kind in {"AdaptiveAveragePool", "ReduceMean"} and set(operation.shape[2:]) <= {1}:
        return "global average pooling"
    return WORDS.get(operation.kind, operation.kind)


def _multiply_adds(operation: Operation) -> int:
    if operation.kind == "Conv":
        return prod(operation.shape) * prod(operation.weight_shape[1:])
    if operation.kind in {"Gemm", "MatMul"} and operation.weight_shape:
        return prod(operation.shape) * operation.input_shapes[0][-1]
    return 0


def _channels_first(shape: tuple[int, ...], field: Field | None) -> tuple[int, ...]:
    """C, h, w of a map in either layout; anything else as it is, without the batch."""
    if field is not None and len(shape) == 4 and field.spatial == (1, 2):
        return (shape[3], shape[1], shape[2])
    return shape[1:]


def _one(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ",".join(map(str, values))
