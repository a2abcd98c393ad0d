"""fp16 for GPUs: half the size, and tensor cores; pixels in and answers out stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from training.export.int8.graph import INPUT, SCORES, Graph

IN_FLOAT = ("Softmax", "Resize", "Range", "Cast")
"""Operators that stay in float: exponentials run out of fp16's range."""
NORMALISING = ("Transpose", "Cast", "Mul", "Sub", "Add", "Div")


def half_precision(encoded: bytes) -> bytes:
    """*encoded* with its weights and arithmetic in fp16.

    The input stays `uint8`, and the outputs stay `float32`, as do softmax and normalisation. Raises
    `onnx.checker.ValidationError` if the result is no sound graph, which would be our mistake.
    """
    graph = Graph.of(encoded)
    # 255 levels times a deviation need more than fp16's eleven bits.
    normalisation = _behind(graph, INPUT, NORMALISING)
    kept = [node.name for node in (*normalisation, *_behind(graph, SCORES))]
    model = convert_float_to_float16(
        graph.model, keep_io_types=True, op_block_list=list(IN_FLOAT), node_block_list=kept
    )
    _cast_once(Graph(model))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _behind(
    graph: Graph, value: str, operators: Collection[str] | None = None
) -> Iterator[onnx.NodeProto]:
    """The nodes that read *value*, directly or through others; only *operators*, if given."""
    values = [value]
    while values:
        for node in graph.readers(values.pop()):
            if operators is None or node.op_type in operators:
                yield node
                values += node.output


def _cast_once(graph: Graph) -> None:
    """Let whoever reads an output in float read that output, without a cast of its own.

    The answers then need the same nodes in every precision.
    """
    for output in graph.outputs:
        maker = graph.maker(output)
        if maker is None or maker.op_type != "Cast":
            continue
        for twin in graph.readers(maker.input[0]):
            if twin.op_type != "Cast" or twin.attribute[0].i != onnx.TensorProto.FLOAT:
                continue
            for reader in graph.readers(twin.output[0]):
                for index, name in enumerate(reader.input):
                    if name == twin.output[0]:
                        reader.input[index] = output
    graph.drop_unread()
