"""Values inside a network for given images: the feature maps of any layer of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import PackageError
from models.runtime.answer_graph import ANSWER, ancestors, keep
from models.runtime.weights import INSIDE, Weights, share_weights, take_weights


def without_weights(encoded: bytes) -> tuple[bytes, Weights]:
    """The part of the ONNX model *encoded* that answers, and its large weights beside it.

    Opening a session of ResNet-50 so takes 16 ms of CPU time instead of 370, and no memory for
    weights. It runs in 95 ms instead of 77, for its weights are not packed again.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    keep(model.graph, ancestors(model.graph, [ANSWER]))
    weights = take_weights(model)
    return model.SerializeToString(), weights


def session_with_outputs(
    encoded: bytes, names: Sequence[str], *, threads: int = 0, weights: Weights = INSIDE
) -> ort.InferenceSession:
    """A session of the ONNX model *encoded* whose outputs are the values *names*.

    *weights* are those that `without_weights` took out.

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
    if weights:
        share_weights(options, model, weights)
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Of all optimisations but those of layout, which copy the weights.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
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
