"""A float ONNX graph that can be asked who makes and who reads a value, and whose constants can be
exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

Array: TypeAlias = NDArray[np.float32]

INPUT = "image"
SCORES = "logits"
WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators with a weight: the ones that int8 makes small and fast."""


class Graph:
    """A view on a `ModelProto`, which it changes in place.

    Node names are unique: unnamed nodes get one.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = model.graph.node
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._read: defaultdict[str, list[NodeProto]] = defaultdict(list)
        self._made: dict[str, NodeProto] = {}
        for index, node in enumerate(self.nodes):
            node.name = node.name or f"{node.op_type}_{index}"
            for name in node.input:
                self._read[name].append(node)
            for name in node.output:
                self._made[name] = node
        self.outputs = frozenset(value.name for value in model.graph.output)

    @classmethod
    def of(cls, encoded: bytes) -> Graph:
        """A view on a model of its own, read from *encoded*."""
        return cls(onnx.ModelProto.FromString(encoded))

    def floats(self) -> dict[str, int]:
        """The float32 values that nodes give, and how many dimensions each has."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        tensors = {
            value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)
        }
        floats = {
            name: len(tensor.shape.dim)
            for name, tensor in tensors.items()
            if tensor.elem_type == onnx.TensorProto.FLOAT
        }
        # Some exporters describe constants too.
        return {name: dimensions for name, dimensions in floats.items() if name in self._made}

    def maker(self, value: str) -> NodeProto | None:
        """The node that gives *value*; None for inputs and constants."""
        return self._made.get(value)

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that take *value*."""
        return self._read[value]

    def only_reader(self, value: str) -> NodeProto | None:
        """The one node that takes *value*; None if there are several, or if it is an output of the
        graph too.
        """
        readers = self._read[value]
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """The constant called *name*; None if it is none."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def set_constant(self, name: str, value: Array) -> None:
        """Put *value* in the place of constant *name*, in its type, for everyone who reads it; a
        new name is added in float32.
        """
        known = self._constants.get(name)
        dtype = np.dtype(np.float32) if known is None else numpy_helper.to_array(known).dtype
        # Not `ascontiguousarray`: it makes a list of one of a single number.
        tensor = numpy_helper.from_array(np.asarray(value, dtype=dtype, order="C"), name)
        if name in self._constants:
            self._constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self._constants[name] = self.model.graph.initializer[-1]

    def weight(self, node: NodeProto) -> Array | None:
        """The constant weight of a node of `WEIGHTED`; None for other nodes, and for products of
        two computed values.
        """
        return self.constant(node.input[1]) if node.op_type in WEIGHTED else None

    def bias(self, node: NodeProto) -> Array | None:
        """The constant bias of *node*; None if it has none."""
        return (
            self.constant(node.input[2])
            if node.op_type in ("Conv", "Gemm") and len(node.input) > 2
            else None
        )

    def needed_for(self, value: str) -> Iterator[NodeProto]:
        """Nodes that *value* is computed from, in the order of the graph."""
        wanted: Set[str] = {value}
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        return iter(kept[::-1])

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
    """Whether each output channel of the convolution *node* reads the input channel of its own
    index and no other.
    """
    group = attribute(node, "group", 1)
    return (
        node.op_type == "Conv" and group > 1 and group == weight.shape[0] and weight.shape[1] == 1
    )


def shapes_forgotten(model: onnx.ModelProto) -> None:
    """Drop the recorded types of values between nodes, which hold no longer once the numbers have
    another type; they can be inferred again.
    """
    del model.graph.value_info[:]


def in_order(model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes of *model*, each after those that it reads from."""
    found: list[NodeProto] = []
    ready = (
        {value.name for value in model.graph.input}
        | {tensor.name for tensor in model.graph.initializer}
        | {""}
    )
    waiting = list(model.graph.node)
    while waiting:
        later = []
        for node in waiting:
            if ready.issuperset(node.input):
                found.append(node)
                ready |= set(node.output)
            else:
                later.append(node)
        assert len(later) < len(waiting), "the graph has a cycle"
        waiting = later
    return found


def put_in_order(model: onnx.ModelProto) -> None:
    """Sort the nodes of *model* as ONNX wants them."""
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in in_order(model)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unread(graph: Graph) -> None:
    """Remove the nodes and constants that no output needs, and sort the others.

    *graph* is to be made anew afterwards.
    """
    live = set(graph.outputs)
    kept: list[NodeProto] = []
    for node in reversed(in_order(graph.model)):
        if live & set(node.output):
            live |= set(node.input)
            kept.append(node)
    model = graph.model.graph
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    constants = [
        onnx.TensorProto.FromString(tensor.SerializeToString())
        for tensor in model.initializer
        if tensor.name in live
    ]
    for field, values in ((model.node, nodes), (model.initializer, constants)):
        del field[:]
        field.extend(values)
