"""What `model.onnx` must be before a session may load it: whole, self-contained, finite, and what
the manifest says it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from models.errors import ModelInvalid
from models.package.manifest import Manifest, TensorSpec

if TYPE_CHECKING:  # onnx is imported where it is used: `loupe models list` need not pay for it
    from onnx import (
        AttributeProto,
        GraphProto,
        ModelProto,
        NodeProto,
        SparseTensorProto,
        TensorProto,
        ValueInfoProto,
    )

LIMIT_BYTES = 2**31 - 1
"""Of one protobuf message; a larger model needs external data, which a package may not have."""


def check_graph(encoded: bytes, manifest: Manifest, *, origin: str) -> None:
    """Raises `ModelInvalid`, naming *origin*, if *encoded* is not the model that *manifest*
    describes.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model = onnx.ModelProto.FromString(encoded)
    except DecodeError as error:
        raise ModelInvalid(
            f"{origin} is not a whole ONNX file ({len(encoded)} bytes): {error}. Export the package"
            " again"
        ) from error
    tensors = list(_tensors(model))
    _refuse_external_data(tensors, origin=origin)
    try:
        onnx.checker.check_model(encoded)
    except (
        onnx.checker.ValidationError,
        ValueError,
    ) as error:  # ValueError: a message of the checker that is not UTF-8
        raise ModelInvalid(f"{origin} is not a valid ONNX graph: {str(error).strip()}") from error
    _check_opset(model, manifest, origin=origin)
    _check_signature(model.graph, manifest, origin=origin)
    _refuse_non_finite(tensors, origin=origin)


def _refuse_external_data(tensors: list[TensorProto], *, origin: str) -> None:
    from onnx import TensorProto

    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            files = [entry.value for entry in tensor.external_data if entry.key == "location"]
            raise ModelInvalid(
                f"{origin}: tensor {tensor.name!r} keeps its data in another file"
                f" ({', '.join(files) or 'unnamed'}). External data is refused, it can point"
                " anywhere on the disk: export with external_data=False"
            )


def _check_opset(model: ModelProto, manifest: Manifest, *, origin: str) -> None:
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if opsets != [manifest.opset]:
        raise ModelInvalid(
            f"{origin} has opset {', '.join(map(str, opsets)) or 'none'}, but the manifest says"
            f" {manifest.opset}"
        )


def _check_signature(graph: GraphProto, manifest: Manifest, *, origin: str) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    outputs = {value.name: value for value in graph.output}
    for kind, found, specs in (
        ("inputs", inputs, (manifest.input,)),
        ("outputs", outputs, manifest.outputs),
    ):
        names = sorted(spec.name for spec in specs)
        if sorted(found) != names:
            raise ModelInvalid(
                f"{origin} has {kind} {', '.join(sorted(found))}, but the manifest says"
                f" {', '.join(names)}"
            )
        for spec in specs:
            _check_tensor(found[spec.name], spec, f"{kind[:-1]} {spec.name}", origin=origin)


def _check_tensor(value: ValueInfoProto, spec: TensorSpec, label: str, *, origin: str) -> None:
    """The sizes that *spec* gives as numbers are those of the graph; the sizes that it gives as
    letters are free in the graph.
    """
    from onnx import TensorProto

    kinds: dict[int, str] = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}
    kind = value.type.tensor_type.elem_type
    if kinds.get(kind) != spec.dtype:
        found = kinds.get(kind, f"ONNX type {kind}")
        raise ModelInvalid(f"{origin}: {label} is {found}, but the manifest says {spec.dtype}")
    shape = [
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in value.type.tensor_type.shape.dim
    ]
    if [size if isinstance(size, int) else "free" for size in shape] != [
        size if isinstance(size, int) else "free" for size in spec.shape
    ]:
        raise ModelInvalid(
            f"{origin}: {label} has shape {_written(shape)}, but the manifest says"
            f" {_written(spec.shape)}"
        )


def _written(shape: list[int | str] | tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _refuse_non_finite(tensors: list[TensorProto], *, origin: str) -> None:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floating = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    for tensor in tensors:
        if tensor.data_type not in floating:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError as error:
            raise ModelInvalid(
                f"{origin}: tensor {tensor.name!r} does not hold the values that its shape"
                f" promises: {error}"
            ) from error
        # A lone infinity is how graphs write an open bound (Clip, Max); a weight is never a scalar.
        bad = np.isnan(values) if values.size == 1 else ~np.isfinite(values)
        if bad.any():
            raise ModelInvalid(
                f"{origin}: NaN weights refused: {int(bad.sum())} of {values.size} values of tensor"
                f" {tensor.name!r} are NaN or infinite. The training run diverged: lower its"
                " learning rate and export again"
            )


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of *model*, wherever a graph can hide one: initializers, attributes, subgraphs,
    functions, sparse, training.
    """
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from _sparse_tensors(sparse)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _graph_tensors(graph)


def _sparse_tensors(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices
