"""Reading and checking a foreign ONNX graph, and small steps on graphs.

Everything is refused that could not be served: other files, custom operators, local code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no types
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from models.errors import ImportRefused
from models.package.graph_check import LIMIT_BYTES

STANDARD = ("", "ai.onnx")
LEAST_OPSET = 7
"""Below this ONNX Runtime gives no promise. Source: its page on compatibility."""
LEAST_IR = 8
"""Of what is written here: initializers need not be inputs."""
OURS = ("image", "logits", "probabilities", "embedding", "cam")
"""Names that a package's graph needs for itself."""


def read_onnx(path: Path) -> ModelProto:
    """The model in *path* as one message, with the data of files beside it.

    Raises `ImportRefused`.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        _require_near(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
    except DecodeError as error:
        raise ImportRefused(
            f"{path} is not a whole ONNX file ({error}); copy it again, or export it again"
        ) from error
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        raise ImportRefused(
            f"{path}: the files with its weights cannot be read ({_first_line(error)}); put them"
            " beside it, under the names they were exported with"
        ) from error
    for tensor in model.graph.initializer:
        del tensor.external_data[:]
        tensor.data_location = tensor.DEFAULT
    if not model.graph.node:
        raise ImportRefused(f"{path} holds no graph; expected an ONNX model")
    return tidied(model, origin=str(path))


def tidied(model: ModelProto, *, origin: str) -> ModelProto:
    """*model* without local functions and unused domains, in place.

    Raises `ImportRefused` for operators outside the ONNX standard and old versions.
    """
    if model.functions:
        inlined = onnx.inliner.inline_local_functions(model)
        model.CopyFrom(inlined)
        del model.functions[:]
    foreign = Counter(
        f"{node.domain}.{node.op_type}"
        for node in nodes_of(model.graph)
        if node.domain not in STANDARD
    )
    if foreign:
        raise ImportRefused(
            f"{origin} uses operators outside the ONNX standard"
            f" ({', '.join(sorted(foreign))}), which browsers and other machines lack; export it"
            " again without the optimiser or plugin that wrote them"
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    if not versions or min(versions) < LEAST_OPSET:
        raise ImportRefused(
            f"{origin} has opset {versions[0] if versions else 'none'}; expected {LEAST_OPSET} or"
            " newer: export it again, with opset 17 for example"
        )
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", max(versions)))
    model.ir_version = max(model.ir_version, LEAST_IR)
    _forget_inputs_that_are_weights(model.graph)
    for node in nodes_of(model.graph):
        # Exporters write the paths of source files here.
        del node.metadata_props[:]
        node.doc_string = ""
    if model.ByteSize() > LIMIT_BYTES:
        raise ImportRefused(
            f"{origin} has {model.ByteSize() / 2**30:.1f} GiB, and one ONNX file holds 2 GiB"
        )
    return model


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of *graph* and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


def makers(graph: GraphProto) -> dict[str, NodeProto]:
    """Value -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def constants(graph: GraphProto) -> dict[str, NDArray[np.generic]]:
    """Small and large constants of *graph* by name: initializers, and nodes of kind Constant."""
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    # An Identity of a weight is a weight: exporters share equal ones so.
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute of *node*."""
    return next(
        (onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name),
        default,
    )


def free_our_names(graph: GraphProto) -> None:
    """Rename the values of *graph* that have a name of `OURS`, in place."""
    taken = {name: f"source/{name}" for name in OURS}
    for node in nodes_of(graph):
        for names in (node.input, node.output):
            names[:] = [taken.get(name, name) for name in names]
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = taken.get(value.name, value.name)


def _forget_inputs_that_are_weights(graph: GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _require_near(model: ModelProto, path: Path) -> None:
    """Raise `ImportRefused` if the weights lie anywhere else than beside *path*."""
    here = path.parent.resolve()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if not (here / entry.value).resolve().is_relative_to(here):
                raise ImportRefused(
                    f"{path}: tensor {tensor.name!r} keeps its data in {entry.value}, outside the"
                    " model's folder; export it again with all its data in one place"
                )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
