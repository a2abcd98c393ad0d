"""fp16 for GPUs: half the size, and tensor cores; pixels in and answers out stay as they are."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from training.export.int8.graph import (
    INPUT,
    SCORES,
    Graph,
    drop_unread,
    put_in_order,
    shapes_forgotten,
)

IN_FLOAT = ("Softmax", "Resize", "Range", "Cast")
"""Exponentials run out of fp16's range."""
NORMALISING = ("Mul", "Sub", "Add", "Div")


def half_precision(encoded: bytes) -> bytes:
    """*encoded* with its weights and arithmetic in fp16; the input stays `uint8`, the outputs
    `float32`, softmax and normalisation in float.

    Raises `onnx.checker.ValidationError` if the result is no sound graph, which would be our
    mistake.
    """
    graph = Graph.of(encoded)
    kept = [node.name for node in (*_normalisation(graph), *_after_scores(graph))]
    model = convert_float_to_float16(
        graph.model, keep_io_types=True, op_block_list=list(IN_FLOAT), node_block_list=kept
    )
    shapes_forgotten(model)
    put_in_order(model)
    _cast_once(Graph(model))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _after_scores(graph: Graph) -> list[onnx.NodeProto]:
    """The temperature, between logits and softmax."""
    found, values = [], [SCORES]
    while values:
        readers = graph.readers(values.pop())
        found += readers
        values += [name for node in readers for name in node.output]
    return found


def _cast_once(graph: Graph) -> None:
    """Who reads an output in float reads that output, and not a cast of his own: the answers then
    need the same nodes in every precision.
    """
    for output in graph.outputs:
        maker = graph.maker(output)
        if maker is None or maker.op_type != "Cast":
            continue
        twins = [
            node
            for node in graph.readers(maker.input[0])
            if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT
        ]
        for twin in twins:
            for reader in graph.readers(twin.output[0]):
                for index, name in enumerate(reader.input):
                    if name == twin.output[0]:
                        reader.input[index] = output
    drop_unread(graph)


def _normalisation(graph: Graph) -> list[onnx.NodeProto]:
    """What is done to the pixels before the first layer: 255 levels times a deviation need more
    than fp16's eleven bits.
    """
    found, values = [], [INPUT]
    while values:
        for node in graph.readers(values.pop()):
            if node.op_type in ("Transpose", "Cast", *NORMALISING):
                found.append(node)
                values += node.output
    return found
