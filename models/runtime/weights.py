"""Weights of a graph: computed once, and shared by the sessions that use them.

ONNX Runtime copies the weights of a model into each session. Sessions of parts of one graph need
not have a copy each.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnxruntime as ort

from models.runtime.answer_graph import ancestors, keep, varying_values
from models.runtime.providers import session_options

if TYPE_CHECKING:  # imported where it is used
    from onnx import ModelProto, TensorProto

Weights = Mapping[str, ort.OrtValue]
"""Large weights of a graph by name, in memory that all its sessions share."""
INSIDE: Weights = MappingProxyType({})
"""Of a graph that holds its weights itself."""
LARGE = 1024
"""Weights of more elements than this are shared."""


def take_weights(model: ModelProto) -> Weights:
    """The large weights of *model*, which keeps only their names, types and shapes."""
    import onnx

    shared = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in shared and prod(tensor.dims) > LARGE:
            values = onnx.numpy_helper.to_array(tensor)
            weights[tensor.name] = ort.OrtValue.ortvalue_from_numpy(values)
            _empty(tensor)
    return weights


def share_weights(options: ort.SessionOptions, model: ModelProto, weights: Weights) -> None:
    """Let a session of *model* use *weights*."""
    names = [tensor.name for tensor in model.graph.initializer if tensor.name in weights]
    options.add_external_initializers(names, [weights[name] for name in names])


def fold_constants(model: ModelProto) -> None:
    """Compute once, in place, what no input of *model* changes.

    The head of VGG sums weights of 411 MB to 8 MB before it uses them.
    """
    import onnx

    graph = model.graph
    varying = varying_values(graph)
    made = {name for node in graph.node for name in node.output} - varying
    used = {name for node in graph.node if varying.intersection(node.output) for name in node.input}
    wanted = sorted(made & used)
    if not wanted:
        return
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:], part.graph.input[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    keep(part.graph, ancestors(part.graph, wanted))
    session = ort.InferenceSession(
        part.SerializeToString(),
        session_options(1, provider="cpu"),
        providers=["CPUExecutionProvider"],
    )
    for index in range(len(graph.node) - 1, -1, -1):
        if made.intersection(graph.node[index].output):
            del graph.node[index]
    for name, values in zip(wanted, session.run(wanted, {}), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    keep(graph, ancestors(graph, [value.name for value in graph.output]))


def _empty(tensor: TensorProto) -> None:
    """Leave of *tensor* its name, type and shape."""
    import onnx

    told = {"name": tensor.name, "dims": tensor.dims, "data_type": tensor.data_type}
    tensor.CopyFrom(onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, **told))
    tensor.external_data.add(key="location", value="shared")
