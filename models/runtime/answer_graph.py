"""Cuts a graph down to what `probabilities` needs.

Inference builds of ONNX Runtime compute every output of a graph, requested or not
(microsoft/onnxruntime#16013). So fewer outputs cost less only if the graph has fewer. Measured with
one thread, class-activation maps that nobody asked for cost MobileNetV3-small 29 % with 2 classes
and 58 to 68 % with 1000.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # onnx is imported where it is used: `loupe models list` need not pay for it
    from onnx import GraphProto, ModelProto, NodeProto

ANSWER = "probabilities"


def answering_part(encoded: bytes) -> tuple[bytes, frozenset[str]]:
    """The part of the ONNX model *encoded* that computes `probabilities`.

    Also returns the names of all outputs of that part. The part is *encoded* itself if nothing else
    is in it.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    graph = model.graph
    outputs = frozenset(value.name for value in graph.output)
    needed = ancestors(graph, [ANSWER])
    kept = frozenset(name for name in outputs if name in needed)
    if kept == outputs:
        return encoded, outputs
    keep(graph, needed)
    return model.SerializeToString(), kept


@dataclass(frozen=True)
class SplitGraph:
    """A graph as two: what answers, and a small rest that goes on from its inner values."""

    answer: bytes
    """Computes `probabilities`; *inner* are outputs too."""
    outputs: frozenset[str]
    """What the whole graph and `answer` both give."""
    inner: tuple[str, ...] = ()
    """What the rest reads: values that `answer` computes, and perhaps the image."""
    rest: bytes | None = None
    """Computes the other outputs from *inner*, whose types `typed` states; None: there are none."""


def split_graph(encoded: bytes) -> SplitGraph:
    """The ONNX model *encoded* as two graphs.

    The rest of a classifier is its head for class-activation maps. It has no weights of the
    network, so that an explanation costs one run and a little more. Nodes that do not depend on the
    image are in both.
    """
    import onnx

    model = onnx.ModelProto.FromString(encoded)
    graph = model.graph
    needed = ancestors(graph, [ANSWER])
    outputs = frozenset(value.name for value in graph.output)
    beyond = [value.name for value in graph.output if value.name not in needed]
    if not beyond:
        return SplitGraph(encoded, outputs)
    inner, own = _rest_of(graph, needed, beyond)
    rest = _part(model, own, beyond)
    keep(graph, needed)
    image = {value.name for value in graph.input}
    exposed = [name for name in inner if name not in image | outputs]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    return SplitGraph(
        model.SerializeToString(),
        outputs - {*beyond},
        tuple(inner),
        rest.SerializeToString(),
    )


def typed(rest: bytes, types: Mapping[str, str]) -> ModelProto:
    """The graph *rest* with its inputs, whose *types* are ONNX Runtime's, as `tensor(float)`."""
    import onnx

    model: ModelProto = onnx.ModelProto.FromString(rest)
    numbers = {
        f"tensor({name.lower()})": number for name, number in onnx.TensorProto.DataType.items()
    }
    for name, spelt in types.items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, numbers[spelt], None))
    return model


def _rest_of(
    graph: GraphProto, needed: set[str], outputs: Iterable[str]
) -> tuple[list[str], set[str]]:
    """Which *needed* values *outputs* come from, and the names of all values on the way."""
    maker = {name: node for node in graph.node for name in node.output if name}
    varying = varying_values(graph)
    inner: dict[str, None] = {}
    own: set[str] = set()
    open_names = list(outputs)
    while open_names:
        name = open_names.pop()
        # A value that is stored in int8 crosses so: as an output in fp32 it would keep int8 kernels
        # from being chosen, which costs plain answers a tenth.
        stored = name in maker and maker[name].op_type == "DequantizeLinear"
        if name in needed and name in varying and not stored:
            inner[name] = None
        elif name not in own:
            own.add(name)
            open_names += _reads(maker[name]) if name in maker else []
    return list(inner), own


def varying_values(graph: GraphProto) -> set[str]:
    """Names of the values that depend on the image."""
    stored = {tensor.name for tensor in graph.initializer}
    varying = {value.name for value in graph.input} - stored
    for node in graph.node:
        if varying.intersection(_reads(node)):
            varying.update(node.output)
    return varying


def _part(model: ModelProto, names: set[str], outputs: Iterable[str]) -> ModelProto:
    """A copy of the nodes and constants that give *names*. Its inputs have no types yet."""
    import onnx

    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "rest"
    part.graph.node.extend(node for node in model.graph.node if names.intersection(node.output))
    part.graph.initializer.extend(one for one in model.graph.initializer if one.name in names)
    part.graph.output.extend(one for one in model.graph.output if one.name in outputs)
    return part


def ancestors(graph: GraphProto, outputs: Iterable[str]) -> set[str]:
    """Names of *outputs*, of all values they come from, and of the other outputs on the way."""
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
    """Values that *node* reads, also from inside its inner graphs."""
    inner = [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]
    # Names of inner values too: a name too many keeps a node too many, and nothing worse.
    return [name for name in node.input if name] + [
        name for graph in inner for child in graph.node for name in _reads(child)
    ]


def keep(graph: GraphProto, needed: set[str]) -> None:
    """Remove in place what gives none of the *needed* values.

    Copying the weights of ResNet-50 would hold the GIL, and so every request, for a second.
    """
    for entries in (graph.node, graph.output, graph.initializer, graph.value_info):
        for index in range(len(entries) - 1, -1, -1):
            names = getattr(entries[index], "output", [entries[index].name])
            if not needed.intersection(names):
                del entries[index]
