"""A float graph in int8, as ONNX's QuantizeLinear and DequantizeLinear pairs, which ONNX Runtime
fuses into integer operators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from training.export.int8.graph import SCORES, Graph, drop_unread, shapes_forgotten
from training.export.int8.pixels import CENTRED, PixelInput
from training.export.int8.ranges import Range

OPERATORS = (
    *(
        "Conv",
        "Gemm",
        "MatMul",
        "Clip",
        "Relu",
        "Add",
        "Mul",
        "Concat",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "ReduceMean",
    ),
    *("Reshape", "Flatten", "Transpose", "Pad", "Squeeze"),
)
"""Those that ONNX Runtime's CPU provider computes in integers, or that only move numbers. What is not among them stays in float."""


def quantised(
    graph: Graph,
    ranges: Mapping[str, Range],
    *,
    pixels: PixelInput | None,
    in_float: Collection[str],
    per_channel: bool,
    reduce_range: bool,
) -> bytes:
    """*graph* in int8 wherever its `logits` come from, but for the nodes named in *in_float*; no
    weight is in the file twice.

    Activations are unsigned: that is what the VNNI instructions multiply with signed weights. With
    *reduce_range* weights have seven bits, because without VNNI two products are added in 16 bits,
    which eight would overflow.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    for node in graph.nodes:
        # An activation that only cuts is what the range of its output does anyway; the value before
        # it is not quantised by itself.
        if (
            node.op_type in ("Clip", "Relu")
            and node.input[0] not in bounds
            and node.output[0] in bounds
        ):
            bounds[node.input[0]] = bounds[node.output[0]]
    if pixels is not None:
        bounds[CENTRED] = (np.float32(-pixels.zero), np.float32(255 - pixels.zero))
    floats = graph.floats()
    chosen = [
        node.name
        for node in graph.needed_for(SCORES)
        if node.name not in in_float and _quantisable(node, floats, bounds)
    ]
    quantiser = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel,
        reduce_range,
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
    drop_unread(result)
    shapes_forgotten(result.model)
    onnx.checker.check_model(result.model, full_check=True)
    return result.encoded()


def _quantisable(node: onnx.NodeProto, floats: Collection[str], bounds: Collection[str]) -> bool:
    """Whether int8 can compute *node*: it has an integer form, and the range of every number that
    it takes and gives is known.

    Networks reckon with shapes and places by the same operators; their ranges are not measured.
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
    """What still reads a weight in float, such as the class-activation maps, reads the stored int8
    weight and its scales instead.
    """
    for node in list(graph.nodes):
        for index, name in enumerate(node.input):
            stored = graph.maker(f"{name}_DequantizeLinear_Output")
            if stored is not None and graph.constant(name) is not None:
                node.input[index] = stored.output[0]
