"""The first convolution fed with the pixels as they are: they are 8-bit integers already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from training.export.int8.graph import INPUT, Array, Graph, attribute

CENTRED = "pixels_centred"
LEVELS = 255.0


@dataclass(frozen=True)
class PixelInput:
    """Where the pixels now enter the network."""

    integers: str
    """Value of the graph with the pixels, `uint8`."""
    zero: int
    """The grey level that counts as 0, and so the one that a border is padded with."""


def take_pixels(graph: Graph) -> PixelInput | None:
    """Move the normalisation of *graph* into its first convolution; None, and nothing done, where
    something else reads it.

    The convolution takes pixel - zero, with one zero for all three channels, because int8 has one.
    Inside the image that is exact. A border that the convolution pads gets that grey level and not
    each channel's mean: a few levels of 255, in the outermost pixels alone. Measured with ONNX
    Runtime on one thread, normalising in integers costs MobileNetV2 2.5 of 9 ms.
    """
    chain = _normalisation(graph)
    if chain is None:
        return None
    cast, steps, convolution = chain
    scale_C, shift_C = _affine(graph, steps)
    zero_C = -shift_C / scale_C
    zero = int(np.clip(np.rint(zero_C.mean()), 0, LEVELS))
    weight = graph.weight(convolution)
    assert weight is not None
    scaled = weight * scale_C.reshape(1, 3, 1, 1)
    moved_K = (scaled * (zero - zero_C).reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3))
    bias_K = graph.bias(convolution)
    graph.set_constant(convolution.input[1], scaled)
    _set_bias(graph, convolution, moved_K if bias_K is None else bias_K + moved_K)
    _rewire(graph, cast, steps, convolution, zero)
    return PixelInput(cast.input[0], zero)


def _normalisation(graph: Graph) -> tuple[NodeProto, list[NodeProto], NodeProto] | None:
    """The cast of the pixels, the steps that normalise them, and the one convolution behind: each
    with the next as its only reader.
    """
    node = graph.only_reader(INPUT)
    if node is not None and node.op_type == "Transpose":
        node = graph.only_reader(node.output[0])
    if node is None or node.op_type != "Cast":
        return None
    cast, steps = node, []
    node = graph.only_reader(cast.output[0])
    while (
        node is not None
        and node.op_type in ("Mul", "Sub", "Add", "Div")
        and _operand(graph, node) is not None
    ):
        steps.append(node)
        node = graph.only_reader(node.output[0])
    weight = None if node is None else graph.weight(node)
    if (
        node is None
        or node.op_type != "Conv"
        or weight is None
        or weight.shape[1] != 3
        or attribute(node, "group", 1) != 1
    ):
        return None
    return cast, steps, node


def _operand(graph: Graph, node: NodeProto) -> Array | None:
    """The constant that *node* combines the pixels with, one number a channel; None if it is
    something else.
    """
    value = graph.constant(node.input[1])
    return (
        value.reshape(-1)
        if value is not None
        and value.size in (1, 3)
        and value.shape in ((), (1,), (1, 3, 1, 1), (3, 1, 1))
        else None
    )


def _affine(graph: Graph, steps: list[NodeProto]) -> tuple[Array, Array]:
    """What *steps* do to a pixel of each channel: times the first, plus the second."""
    scale_C, shift_C = np.ones(3, np.float32), np.zeros(3, np.float32)
    for step in steps:
        operand = _operand(graph, step)
        assert operand is not None
        if step.op_type in ("Mul", "Div"):
            factor = operand if step.op_type == "Mul" else 1.0 / operand
            scale_C, shift_C = scale_C * factor, shift_C * factor
        else:
            shift_C = shift_C + (operand if step.op_type == "Add" else -operand)
    return scale_C, shift_C


def _set_bias(graph: Graph, convolution: NodeProto, bias_K: Array) -> None:
    if len(convolution.input) > 2:
        graph.set_constant(convolution.input[2], bias_K)
    else:
        name = f"{convolution.input[1]}_bias"
        graph.set_constant(name, bias_K)
        convolution.input.append(name)


def _rewire(
    graph: Graph, cast: NodeProto, steps: list[NodeProto], convolution: NodeProto, zero: int
) -> None:
    """Cast, minus *zero*, convolution: nothing else on the way."""
    graph.set_constant("pixels_zero", np.array(zero, dtype=np.float32))
    centred = helper.make_node(
        "Sub", [cast.output[0], "pixels_zero"], [CENTRED], name="centre_pixels"
    )
    convolution.input[0] = CENTRED
    for step in steps:
        graph.nodes.remove(step)
    graph.nodes.insert(list(graph.nodes).index(cast) + 1, centred)
