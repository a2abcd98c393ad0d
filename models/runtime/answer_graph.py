"""Cuts a graph down to what its answers need.

Inference builds of ONNX Runtime compute every output of a graph whether it is asked for or not
(microsoft/onnxruntime#16013), so that requesting fewer outputs costs less only if the session's
graph has fewer. Measured with one thread: class-activation maps that nobody asked for cost
MobileNetV3-small 29 % with 2 classes and 58 to 68 % with 1000.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # onnx is imported where it is used: `loupe models list` need not pay for it
    from onnx import GraphProto, NodeProto

ANSWER = "probabilities"


def answering_part(encoded: bytes) -> tuple[bytes, frozenset[str]]:
    """The part of the ONNX model *encoded* that computes `probabilities`, and the names of all
    outputs that fall out on the way.

    *encoded* itself, if nothing else is in it.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    graph = model.graph
    outputs = frozenset(value.name for value in graph.output)
    needed = _ancestors(graph, [ANSWER])
    kept = frozenset(name for name in outputs if name in needed)
    if kept == outputs:
        return encoded, outputs
    _keep(graph, needed)
    return model.SerializeToString(), kept


def keep_ancestors(graph: GraphProto, outputs: Sequence[str]) -> None:
    """Remove from *graph*, in place, everything that the values *outputs* do not need."""
    _keep(graph, _ancestors(graph, outputs))


def _ancestors(graph: GraphProto, outputs: Sequence[str]) -> set[str]:
    """Names of every value that *outputs* are computed from, themselves among them, and of what the
    nodes on the way give besides.
    """
    maker = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    open_names = list(outputs)
    while open_names:
        name = open_names.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in maker:
            open_names += [*_reads(maker[name]), *(given for given in maker[name].output if given)]
    return needed


def _reads(node: NodeProto) -> list[str]:
    """Values that *node* reads, those that its inner graphs take from outside among them."""
    inner = [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]
    # Names of inner values too: a name too many keeps a node too many, and nothing worse.
    return [name for name in node.input if name] + [
        name for graph in inner for child in graph.node for name in _reads(child)
    ]


def _keep(graph: GraphProto, needed: set[str]) -> None:
    _drop(graph.node, [any(name in needed for name in node.output) for node in graph.node])
    _drop(graph.output, [value.name in needed for value in graph.output])
    _drop(graph.initializer, [tensor.name in needed for tensor in graph.initializer])
    _drop(graph.value_info, [value.name in needed for value in graph.value_info])


def _drop(field: MutableSequence[Any], kept: list[bool]) -> None:
    """Remove in place what is not *kept*: copying the weights would hold the GIL for a second with
    ResNet-50, and every request with it.
    """
    for index in range(len(kept) - 1, -1, -1):
        if not kept[index]:
            del field[index]
