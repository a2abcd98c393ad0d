"""A view on an ONNX graph: who makes and who reads a value, and constants that can be exchanged."""

from __future__ import annotations

from collections import defaultdict
from graphlib import TopologicalSorter
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from models.runtime.answer_graph import ancestors, keep

Array: TypeAlias = NDArray[np.float32]

INPUT = "image"
SCORES = "logits"
WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators with a weight, which int8 makes small and fast."""


class Graph:
    """A view on a `ModelProto`, which it changes in place.

    Node names are unique: unnamed nodes get one.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = model.graph.node
        self.outputs = frozenset(value.name for value in model.graph.output)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            node.name = node.name or f"{node.op_type}_{index}"
            for name in node.input:
                self._readers[name].append(node)

    @classmethod
    def of(cls, encoded: bytes) -> Graph:
        """A view on a model of its own, read from *encoded*."""
        return cls(onnx.ModelProto.FromString(encoded))

    def floats(self) -> dict[str, int]:
        """The float32 values that nodes give, and how many dimensions each has."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*inferred.value_info, *inferred.output)
            # Some exporters describe constants too, which no node gives.
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            and value.name in self._makers
        }

    def maker(self, value: str) -> NodeProto | None:
        """The node that gives *value*; None for inputs and constants."""
        return self._makers.get(value)

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that take *value*."""
        return self._readers[value]

    def only_reader(self, value: str) -> NodeProto | None:
        """The one node that takes *value*; None if others or an output of the graph take it too."""
        readers = self._readers[value]
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """The constant called *name*; None if it is none."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def set_constant(self, name: str, value: Array) -> None:
        """Replace constant *name* by *value*, in its type; a new name is added in float32."""
        if name not in self._constants:
            self._constants[name] = self.model.graph.initializer.add(
                name=name, data_type=onnx.TensorProto.FLOAT
            )
        known = self._constants[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(known.data_type)
        # Not `ascontiguousarray`: it makes a list of one of a single number.
        known.CopyFrom(numpy_helper.from_array(np.asarray(value, dtype=dtype, order="C"), name))

    def weight(self, node: NodeProto) -> Array | None:
        """The constant weight of a node of `WEIGHTED`; None for other nodes.

        A product of two computed values has none either.
        """
        return self.constant(node.input[1]) if node.op_type in WEIGHTED else None

    def needed_for(self, value: str) -> list[NodeProto]:
        """Nodes that *value* is computed from, in the order of the graph."""
        needed = ancestors(self.model.graph, [value])
        return [node for node in self.nodes if needed.intersection(node.output)]

    def drop_unread(self) -> None:
        """Remove nodes and constants that no output needs, and sort the nodes.

        The recorded types between nodes go too. Make another view afterwards.
        """
        graph = self.model.graph
        makers = {
            node.name: [self._makers[name].name for name in node.input if name in self._makers]
            for node in graph.node
        }
        places = {
            name: place for place, name in enumerate(TopologicalSorter(makers).static_order())
        }
        graph.node.sort(key=lambda node: places[node.name])
        keep(graph, ancestors(graph, self.outputs))
        del graph.value_info[:]

    def encoded(self) -> bytes:
        """The model as it is now."""
        serialised: bytes = self.model.SerializeToString()
        return serialised


def attribute(node: NodeProto, name: str, default: int = 0) -> int:
    """Integer attribute *name* of *node*."""
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def channel_axis(node: NodeProto) -> int:
    """Axis of the weight of *node* along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB") else 1


def is_depthwise(node: NodeProto, weight: Array) -> bool:
    """Whether each output channel of the convolution *node* reads its own input channel only."""
    group = attribute(node, "group", 1)
    return (
        node.op_type == "Conv" and group > 1 and group == weight.shape[0] and weight.shape[1] == 1
    )


def along(values_K: Array, weight: Array) -> Array:
    """*values_K* in a shape that *weight*, output channels first, can be multiplied by."""
    return values_K.reshape((-1,) + (1,) * (weight.ndim - 1))
