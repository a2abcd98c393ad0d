"""The first convolution takes the pixels as they are: they are 8-bit integers already."""

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
    """The grey level that counts as 0, and with which a border is padded."""


def take_pixels(graph: Graph) -> PixelInput | None:
    """Move the normalisation of *graph* into its first convolution.

    None, and nothing done, if something else reads the normalised pixels. The convolution takes
    pixel - zero, with one zero for all three channels, because int8 has one. Inside the image that
    is exact. A border that the convolution pads gets that grey level and not each channel's mean: a
    few levels of 255, in the outermost pixels only.
    """
    chain = _normalisation(graph)
    if chain is None:
        return None
    cast, steps, convolution, weight = chain
    scale_C, shift_C = np.ones(3, np.float32), np.zeros(3, np.float32)
    for step, operand in steps:
        if step.op_type in ("Mul", "Div"):
            factor = operand if step.op_type == "Mul" else 1.0 / operand
            scale_C, shift_C = scale_C * factor, shift_C * factor
        else:
            shift_C = shift_C + (operand if step.op_type == "Add" else -operand)
        graph.nodes.remove(step)
    zero_C = -shift_C / scale_C
    zero = int(np.clip(np.rint(zero_C.mean()), 0, LEVELS))
    scaled = weight * scale_C.reshape(1, 3, 1, 1)
    moved_K = (scaled * (zero - zero_C).reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3))
    graph.set_constant(convolution.input[1], scaled)
    if len(convolution.input) < 3:
        convolution.input.append(f"{convolution.input[1]}_bias")
    bias_K = graph.constant(convolution.input[2])
    graph.set_constant(convolution.input[2], moved_K if bias_K is None else bias_K + moved_K)
    graph.set_constant("pixels_zero", np.array(zero, dtype=np.float32))
    convolution.input[0] = CENTRED
    inputs = [cast.output[0], "pixels_zero"]
    centre = helper.make_node("Sub", inputs, [CENTRED], name="centre_pixels")
    graph.nodes.insert(list(graph.nodes).index(cast) + 1, centre)
    return PixelInput(cast.input[0], zero)


def _normalisation(
    graph: Graph,
) -> tuple[NodeProto, list[tuple[NodeProto, Array]], NodeProto, Array] | None:
    """The cast of the pixels, the normalising steps with constants, the convolution and its weight.

    None unless each has the next as its only reader.
    """
    node = graph.only_reader(INPUT)
    if node is not None and node.op_type == "Transpose":
        node = graph.only_reader(node.output[0])
    if node is None or node.op_type != "Cast":
        return None
    cast, steps = node, []
    node = graph.only_reader(cast.output[0])
    while node is not None and (operand := _operand(graph, node)) is not None:
        steps.append((node, operand))
        node = graph.only_reader(node.output[0])
    weight = None if node is None or node.op_type != "Conv" else graph.weight(node)
    if node is None or weight is None or weight.shape[1] != 3 or attribute(node, "group", 1) != 1:
        return None
    return cast, steps, node, weight


def _operand(graph: Graph, node: NodeProto) -> Array | None:
    """The constant that *node* combines the pixels with; None if it is another node.

    It has one number for each channel or one for all.
    """
    arithmetic = node.op_type in ("Mul", "Sub", "Add", "Div")
    value = graph.constant(node.input[1]) if arithmetic else None
    shapes = ((), (1,), (1, 3, 1, 1), (3, 1, 1))
    return value.reshape(-1) if value is not None and value.shape in shapes else None
