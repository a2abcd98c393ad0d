"""Values inside a network for given images: the feature maps of any layer of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import PackageError
from models.runtime.answer_graph import ancestors, keep


def session_with_outputs(
    encoded: bytes, names: Sequence[str], *, threads: int = 0
) -> ort.InferenceSession:
    """A session of the ONNX model *encoded* whose outputs are the values *names*.

    What these values do not need is cut away, so that an early layer costs little. Raises
    `PackageError` if the graph does not load.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    del model.graph.output[:]
    # ONNX Runtime finds the types by itself.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    keep(model.graph, ancestors(model.graph, names))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise PackageError(
            f"the graph does not load with outputs {', '.join(names)}: {error}"
        ) from error


def feature_maps(
    session: ort.InferenceSession, pixels_NHWC: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    """The outputs of *session* for *pixels_NHWC*, in its order."""
    return list(session.run(None, {session.get_inputs()[0].name: pixels_NHWC}))


def weights_of(encoded: bytes, output: str) -> NDArray[np.float32]:
    """The weights of the operation that makes the value *output*, as float32.

    A weight that is stored as int8 is turned back. Raises `PackageError` if there is none.
    """
    import onnx

    graph = onnx.ModelProto.FromString(encoded).graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    name = made[output].input[1]
    if name in stored:
        return onnx.numpy_helper.to_array(stored[name]).astype(np.float32)
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        raise PackageError(f"the weights of {output!r} are not constants of the graph")
    values, scale, *zero = (onnx.numpy_helper.to_array(stored[part]) for part in node.input)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    spread = [-1 if index == axis and scale.ndim else 1 for index in range(values.ndim)]
    offset = zero[0].astype(np.float32).reshape(spread) if zero else np.float32(0.0)
    turned: NDArray[np.float32] = (values.astype(np.float32) - offset) * scale.reshape(spread)
    return turned
