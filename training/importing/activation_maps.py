"""Embedding and class-activation maps, written into a foreign graph whose head allows it.

The method is that of `models.networks.heads`: the feature map is pushed through the linear part of
each layer of the head, for all classes at once.

Letters used in shapes: N images, K classes, C channels and h and w cells of the feature map, D
embedding features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from training.importing.head import KEEPS_ORDER, Head, head_of
from training.importing.onnx_graph import attribute, constants
from training.importing.wrapping import GraphWriter

Values = Mapping[str, NDArray[np.generic]]


def with_looks_inside(model: ModelProto) -> tuple[ModelProto, str, str]:
    """*model* with outputs `embedding` and `cam` where they are found, in place.

    Also why there is no `embedding` and why no `cam`; empty for what there is.
    """
    head = head_of(model)
    values, writer = constants(model.graph), GraphWriter(model)
    why_no_embedding = _add_embedding(writer, model, head)
    if not head.why_no_maps:
        _add_maps(writer, model, head, values)
    return model, why_no_embedding, head.why_no_maps


def _add_embedding(writer: GraphWriter, model: ModelProto, head: Head) -> str:
    """Output `embedding`: the pooled map, or else what the last linear layer takes."""
    source = head.pooled or head.last_input
    shape = head.shapes.get(source, ())
    size = int(np.prod(shape[1:])) if shape else 0
    if not size or max(shape[1:]) != size:
        return "what its last layer takes is no vector" if source else "it has no linear layer"
    as_float = writer.add("Cast", source, to=TensorProto.FLOAT)
    flat = writer.constant(np.asarray((-1, size), dtype=np.int64))
    writer.add("Reshape", as_float, flat, output="embedding")
    model.graph.output.append(
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", size])
    )
    return ""


def _add_maps(writer: GraphWriter, model: ModelProto, head: Head, values: Values) -> None:
    """Output `cam` [N,K,h,w]: Grad-CAM before its ReLU."""
    pushed = writer.add("Cast", head.features, to=TensorProto.FLOAT)
    if head.channels_last:
        pushed = writer.add("Transpose", pushed, perm=[0, 3, 1, 2])
    for node in head.steps:
        if node.op_type not in KEEPS_ORDER:
            push = _PUSHES.get(node.op_type, _push_through_slope)
            pushed = push(writer, pushed, node, values, head)
    writer.add("Mul", pushed, writer.constant([1.0 / head.cells]), output="cam")
    shape = head.shapes[head.features]
    cells = shape[1:3] if head.channels_last else shape[2:]
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    model.graph.output.append(
        helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", classes, *cells])
    )


def _push_linear(
    writer: GraphWriter, pushed: str, node: NodeProto, values: Values, head: Head
) -> str:
    weight = values[node.input[1]].astype(np.float32)
    weight_JD = weight.reshape(len(weight), -1) if node.op_type == "Conv" else weight.T
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        weight_JD = weight
    scale = attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    assert isinstance(scale, float)
    return writer.add("Conv", pushed, writer.constant((scale * weight_JD)[:, :, None, None]))


def _push_constant(
    writer: GraphWriter, pushed: str, node: NodeProto, values: Values, head: Head
) -> str:
    """Adding a constant changes no direction, and multiplying by one scales it."""
    first_is_constant = node.input[0] in values
    if node.op_type in ("Add", "Sub"):
        if node.op_type == "Sub" and first_is_constant:
            return writer.add("Neg", pushed)
        return pushed
    factor = values[node.input[0 if first_is_constant else 1]].astype(np.float32).reshape(-1)
    if node.op_type == "Div":
        factor = (1.0 / factor).astype(np.float32)
    return writer.add("Mul", pushed, writer.constant(factor.reshape(1, -1, 1, 1)))


def _push_batch_norm(
    writer: GraphWriter, pushed: str, node: NodeProto, values: Values, head: Head
) -> str:
    scale, _, _, variance = (values[name].astype(np.float32) for name in node.input[1:5])
    epsilon = attribute(node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    factor = scale / np.sqrt(variance + epsilon)
    return writer.add("Mul", pushed, writer.constant(factor.reshape(1, -1, 1, 1)))


def _push_layer_norm(
    writer: GraphWriter, pushed: str, node: NodeProto, values: Values, head: Head
) -> str:
    """The derivative of x -> (x - mean) / deviation takes two parts from a direction.

    These are its mean over channels, and what is along the normalised x.
    """
    given = _as_map(writer, node.input[0], head)
    channels = int(np.prod(head.shapes[node.input[0]][1:]))
    epsilon = attribute(node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    mean_weights = writer.constant(np.full((1, channels, 1, 1), 1.0 / channels, dtype=np.float32))

    def mean(value: str) -> str:
        return writer.add("Conv", value, mean_weights)

    centred = writer.add("Sub", given, mean(given))
    variance = mean(writer.add("Mul", centred, centred))
    deviation = writer.add("Sqrt", writer.add("Add", variance, writer.constant([epsilon])))
    normal = writer.add("Div", centred, deviation)
    along = mean(writer.add("Mul", pushed, normal))
    direction = writer.add("Sub", pushed, mean(pushed))
    direction = writer.add("Sub", direction, writer.add("Mul", normal, along))
    scale = values[node.input[1]].astype(np.float32).reshape(1, -1, 1, 1)
    return writer.add("Mul", writer.add("Div", direction, deviation), writer.constant(scale))


def _push_through_slope(
    writer: GraphWriter, pushed: str, node: NodeProto, values: Values, head: Head
) -> str:
    x = _as_map(writer, node.input[0], head)
    return writer.add("Mul", pushed, _SLOPES[node.op_type](writer, x, node, values))


def _as_map(writer: GraphWriter, value: str, head: Head) -> str:
    """The vector *value* as [N,D,1,1], in float32."""
    size = int(np.prod(head.shapes[value][1:]))
    return writer.shaped(writer.add("Cast", value, to=TensorProto.FLOAT), (-1, size, 1, 1))


def _between(writer: GraphWriter, x: str, low: float, high: float) -> str:
    """1 where *x* is above *low* and below *high*, else 0."""
    above = writer.add("Greater", x, writer.constant([low]))
    below = writer.add("Less", x, writer.constant([high]))
    return writer.add("Cast", writer.add("And", above, below), to=TensorProto.FLOAT)


def _relu_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    return _between(writer, x, 0.0, np.inf)


def _leaky_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    leak = attribute(node, "alpha", 0.01)
    assert isinstance(leak, float)
    inside = writer.add("Mul", _between(writer, x, 0.0, np.inf), writer.constant([1.0 - leak]))
    return writer.add("Add", inside, writer.constant([leak]))


def _clip_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    """Bounds are attributes up to opset 10, and inputs since."""
    bounds = []
    for place, (name, open_bound) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        given = node.input[place] if len(node.input) > place else ""
        bound = values[given] if given in values else attribute(node, name, open_bound)
        bounds.append(float(np.asarray(bound).reshape(-1)[0]))
    return _between(writer, x, *bounds)


def _hard_swish_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    """0 up to -3, (2x + 3) / 6 up to 3, then 1."""
    inside = writer.add("Mul", x, writer.constant([1.0 / 3.0]))
    line = writer.add("Add", inside, writer.constant([0.5]))
    middle = writer.add("Mul", line, _between(writer, x, -3.0, 3.0))
    over = writer.add("Not", writer.add("Less", x, writer.constant([3.0])))
    return writer.add("Add", middle, writer.add("Cast", over, to=TensorProto.FLOAT))


def _sigmoid_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    y = writer.add("Sigmoid", x)
    return writer.add("Mul", y, writer.add("Sub", writer.constant([1.0]), y))


def _tanh_slope(writer: GraphWriter, x: str, node: NodeProto, values: Values) -> str:
    y = writer.add("Tanh", x)
    return writer.add("Sub", writer.constant([1.0]), writer.add("Mul", y, y))


Slope = Callable[[GraphWriter, str, NodeProto, Values], str]
_SLOPES: Mapping[str, Slope] = {
    "Relu": _relu_slope,
    "LeakyRelu": _leaky_slope,
    "Clip": _clip_slope,
    "HardSwish": _hard_swish_slope,
    "Sigmoid": _sigmoid_slope,
    "Tanh": _tanh_slope,
}
Push = Callable[[GraphWriter, str, NodeProto, Values, Head], str]
_PUSHES: Mapping[str, Push] = {
    "Gemm": _push_linear,
    "MatMul": _push_linear,
    "Conv": _push_linear,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _push_constant),
    "BatchNormalization": _push_batch_norm,
    "LayerNormalization": _push_layer_norm,
}
