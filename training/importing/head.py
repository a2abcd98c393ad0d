"""The head of a foreign network, found in its graph: from the pooled feature map to the logits.

Letters used in shapes: N images, K classes, C channels and h and w cells of the feature map, D
embedding features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from training.importing.onnx_graph import attribute, constants, makers

KEEPS_ORDER = (
    "Cast",
    "Identity",
    "Dropout",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Transpose",
)
"""Operations that leave the values of a vector in order, whatever axes they add or take."""
LINEAR = ("Gemm", "MatMul", "Conv")
CONSTANT = ("Add", "Sub", "Mul", "Div")
SLOPED = ("Relu", "LeakyRelu", "Clip", "HardSwish", "Sigmoid", "Tanh")
OTHER = ("BatchNormalization", "LayerNormalization")
MOST_STEPS = 60
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Head:
    """What is between a feature map and the logits."""

    steps: tuple[NodeProto, ...]
    """From the pooling, which is not among them, to the logits."""
    features: str
    """The feature map: [N,C,h,w], or with `channels_last` [N,h,w,C]; empty if none was found."""
    channels_last: bool
    cells: int
    """h times w."""
    pooled: str
    """The mean over cells of `features`, C values for each image."""
    last_input: str
    """What the last linear layer takes."""
    shapes: Shapes
    why_no_maps: str
    """Why there are no class-activation maps; empty if there can be."""


def head_of(model: ModelProto, *, logits: str = "logits") -> Head:
    """The head that makes *logits* of the wrapped *model*."""
    made, values = makers(model.graph), constants(model.graph)
    steps, pool, why = _walk(made, values, logits)
    linear = [node for node in steps if node.op_type in LINEAR]
    last_input = _flowing(linear[-1], values) if linear else ""
    names = [name for node in steps for name in (_flowing(node, values), node.output[0])]
    if pool is not None:
        names += [pool.input[0], pool.output[0]]
    shapes = _shapes_of(model, names)
    if pool is not None and not _is_vector(shapes[pool.output[0]]):
        pool, why = None, "its pooling leaves several cells"
    features, channels_last, cells = "", False, 0
    if pool is not None:
        features, channels_last = pool.input[0], _channels_last(pool, values, shapes)
        shape = shapes[features]
        cells = shape[1] * shape[2] if channels_last else shape[2] * shape[3]
        if not why and cells < 2:
            why = "its last feature map has a single cell"
        why = why or _not_vectors(steps, shapes)
    return Head(
        steps=tuple(steps),
        features=features,
        channels_last=channels_last,
        cells=cells,
        pooled=pool.output[0] if pool is not None else "",
        last_input=last_input,
        shapes=shapes,
        why_no_maps=why,
    )


def _walk(
    made: Mapping[str, NodeProto], values: Mapping[str, NDArray[np.generic]], logits: str
) -> tuple[list[NodeProto], NodeProto | None, str]:
    """Steps in the order of computation, the pooling before them, and why maps are impossible."""
    steps: list[NodeProto] = []
    name = logits
    for _ in range(MOST_STEPS):
        node = made.get(name)
        if node is None:
            return steps, None, "no pooling was found before its last layers"
        if _pools(node, values):
            linear = any(step.op_type in LINEAR for step in steps)
            return steps, node, "" if linear else "no linear layer follows its pooling"
        known = node.op_type in (*KEEPS_ORDER, *LINEAR, *SLOPED, *OTHER) or (
            node.op_type in CONSTANT and _has_constant(node, values)
        )
        if not known or (node.op_type in LINEAR and not _is_plain(node, values)):
            return steps, None, f"its head has {node.op_type} before the last layer"
        steps.insert(0, node)
        name = _flowing(node, values)
    return steps, None, "its head has too many layers"


def _pools(node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether *node* takes the mean over all cells of a map."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "ReduceMean":
        axes = _axes(node, values)
        return axes in ([2, 3], [1, 2], [-2, -1], [-3, -2])
    # That its kernel covers the whole map is checked with the shapes.
    return node.op_type == "AveragePool"


def _axes(node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> list[int]:
    """Axes of a reduction: an attribute up to opset 17, an input since."""
    if len(node.input) > 1 and node.input[1] in values:
        return sorted(int(axis) for axis in values[node.input[1]].ravel())
    given = attribute(node, "axes", [])
    assert isinstance(given, list)
    return sorted(given)


def _channels_last(
    pool: NodeProto, values: Mapping[str, NDArray[np.generic]], shapes: Shapes
) -> bool:
    return pool.op_type == "ReduceMean" and _axes(pool, values) in ([1, 2], [-3, -2])


def _not_vectors(steps: list[NodeProto], shapes: Shapes) -> str:
    """Why the values between pooling and logits are no vectors; empty if they are."""
    for node in steps:
        shape = shapes[node.output[0]]
        if not _is_vector(shape):
            return f"its head has {node.op_type} on a map, and not on a vector"
    return ""


def _is_vector(shape: tuple[int, ...]) -> bool:
    """Whether all sizes but the batch and one are 1."""
    return max(shape[1:], default=1) == int(np.prod(shape[1:]))


def _is_plain(node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether a linear layer is one matrix: no grouped or larger convolution, nothing turned."""
    if node.input[1] not in values:
        return False
    if node.op_type == "Conv":
        kernel = values[node.input[1]].shape[2:]
        return int(np.prod(kernel)) == 1 and attribute(node, "group", 1) == 1
    return values[node.input[1]].ndim == 2 and not attribute(node, "transA", 0)


def _has_constant(node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> bool:
    return any(name in values for name in node.input[:2])


def _flowing(node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> str:
    """The input that comes from the image."""
    if node.op_type in CONSTANT and node.input[0] in values:
        return str(node.input[1])
    return str(node.input[0])


def _shapes_of(model: ModelProto, names: list[str]) -> Shapes:
    """Shapes of the values *names* for a batch of 2, by running the graph."""
    whole = ModelProto()
    whole.CopyFrom(model)
    wanted = list(dict.fromkeys(names))
    del whole.graph.output[:]
    whole.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Optimised graphs may not have these values any more.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    image = session.get_inputs()[0]
    pixels_NHWC = np.zeros((2, *image.shape[1:]), dtype=np.uint8)
    found = session.run(wanted, {image.name: pixels_NHWC})
    return {name: value.shape for name, value in zip(wanted, found, strict=True)}
