"""A float graph in int8, as ONNX's QuantizeLinear and DequantizeLinear pairs.

ONNX Runtime fuses them into integer operators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from training.export.int8.graph import SCORES, Graph
from training.export.int8.pixels import CENTRED, PixelInput
from training.export.int8.statistics import Range

OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Clip", "Relu", "Add", "Mul", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
    *("Reshape", "Flatten", "Transpose", "Pad", "Squeeze"),
)
"""Operators that ONNX Runtime's CPU provider computes in integers, or that only move numbers.

All others stay in float.
"""


def quantised(
    graph: Graph,
    ranges: Mapping[str, Range],
    *,
    pixels: PixelInput | None,
    in_float: Collection[str],
) -> bytes:
    """*graph* in int8 wherever its `logits` come from, except the nodes named in *in_float*.

    No weight is in the file twice. Each output channel of a weight has its own scale. Activations
    are unsigned, because the VNNI instructions multiply unsigned with signed numbers.
    """
    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    for node in graph.nodes:
        # The range of the output cuts as the activation does: the value before it needs no range of
        # its own.
        if node.op_type in ("Clip", "Relu") and node.output[0] in bounds:
            bounds.setdefault(node.input[0], bounds[node.output[0]])
    if pixels is not None:
        bounds[CENTRED] = (np.float32(-pixels.zero), np.float32(255 - pixels.zero))
    floats = graph.floats()
    chosen = [
        node.name
        for node in graph.needed_for(SCORES)
        if node.name not in in_float and _quantisable(node, floats, bounds)
    ]
    quantiser = QDQQuantizer(
        onnx.shape_inference.infer_shapes(graph.model),
        True,  # a scale for each channel
        False,  # all eight bits
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, bounds),
        chosen,
        [],
        list(OPERATORS),
        # The last layer gives its sums as they are.
        {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )
    quantiser.quantize_model()
    result = Graph(quantiser.model.model)
    if pixels is not None:
        _feed_integers(result, pixels)
    _share_weights(result)
    result.drop_unread()
    onnx.checker.check_model(result.model, full_check=True)
    return result.encoded()


def _quantisable(node: onnx.NodeProto, floats: Collection[str], bounds: Collection[str]) -> bool:
    """Whether int8 can compute *node*: it has an integer form, and all ranges are known.

    Networks compute shapes and places with the same operators, whose ranges are not measured.
    """
    return (
        node.op_type in OPERATORS
        and node.output[0] in floats
        and all(name in bounds for name in node.input if name in floats)
    )


def _feed_integers(graph: Graph, pixels: PixelInput) -> None:
    """The quantised pixels are the pixels: 8 bits, scale 1.

    Where the first layer was left in float, nothing is quantised there.
    """
    for quantise in graph.readers(CENTRED):
        if quantise.op_type == "QuantizeLinear":
            for reader in graph.readers(quantise.output[0]):
                reader.input[0] = pixels.integers


def _share_weights(graph: Graph) -> None:
    """Let what reads a weight in float read the stored int8 weight and its scales instead.

    The class-activation maps do.
    """
    for node in list(graph.nodes):
        for index, name in enumerate(node.input):
            stored = graph.maker(f"{name}_DequantizeLinear_Output")
            if stored is not None and graph.constant(name) is not None:
                node.input[index] = stored.output[0]
