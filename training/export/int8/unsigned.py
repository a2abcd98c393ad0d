"""Weights as unsigned integers, for x86 processors whose kernels saturate with signed ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

MIDDLE = 128


def with_unsigned_weights(encoded: bytes) -> bytes:
    """*encoded* with its int8 weights as uint8 around 128: the same numbers, so that nothing is
    rounded again.

    Without VNNI, ONNX Runtime multiplies unsigned activations with signed weights by `vpmaddubsw`,
    which adds two products in 16 bits and saturates. With both unsigned it takes a kernel that adds
    in 32 bits: exact, and slower. Source: ONNX Runtime's quantisation guide.
    """
    model = onnx.ModelProto.FromString(encoded)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.data_type != TensorProto.INT8:
            continue
        for tensor in (stored, constants[node.input[2]]):
            raised = numpy_helper.to_array(tensor).astype(np.int16) + MIDDLE
            tensor.CopyFrom(numpy_helper.from_array(raised.astype(np.uint8), tensor.name))
    serialised: bytes = model.SerializeToString()
    return serialised
