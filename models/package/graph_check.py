"""Checks of `model.onnx` before a session may load it.

It must be whole, self-contained and finite, and have the manifest's opset, inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from models.errors import ModelInvalid
from models.package.manifest import Manifest, TensorSpec

if TYPE_CHECKING:  # onnx is imported where it is used: `loupe models list` need not pay for it
    from google.protobuf.message import Message  # type: ignore[import-untyped]  # no types
    from onnx import TensorProto, ValueInfoProto

LIMIT_BYTES = 2**31 - 1
"""Largest protobuf message. A larger model needs external data, which a package may not have."""


def check_graph(encoded: bytes, manifest: Manifest, *, origin: str) -> None:
    """Raise `ModelInvalid`, naming *origin*, unless *encoded* is the model in *manifest*."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(encoded)
    except DecodeError as error:
        raise ModelInvalid(
            f"{origin} is not a whole ONNX file ({len(encoded)} bytes): {error}. Export the package"
            " again"
        ) from error
    tensors = list(_tensors(model))
    for tensor in tensors:
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            files = [entry.value for entry in tensor.external_data if entry.key == "location"]
            raise ModelInvalid(
                f"{origin}: tensor {tensor.name!r} keeps its data in another file"
                f" ({', '.join(files) or 'unnamed'}). External data is refused, it can point"
                " anywhere on the disk: export with external_data=False"
            )
    try:
        onnx.checker.check_model(encoded)
    except (onnx.checker.ValidationError, ValueError) as error:
        # ValueError: the checker's message is not UTF-8.
        raise ModelInvalid(f"{origin} is not a valid ONNX graph: {str(error).strip()}") from error
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if opsets != [manifest.opset]:
        raise ModelInvalid(
            f"{origin} has opset {', '.join(map(str, opsets)) or 'none'}, but the manifest says"
            f" {manifest.opset}"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    _check_values("input", inputs, (manifest.input,), origin=origin)
    _check_values("output", model.graph.output, manifest.outputs, origin=origin)
    _refuse_non_finite(tensors, origin=origin)


def _check_values(
    kind: str, values: Iterable[ValueInfoProto], specs: Sequence[TensorSpec], *, origin: str
) -> None:
    found = {value.name: value for value in values}
    names = sorted(spec.name for spec in specs)
    if sorted(found) != names:
        raise ModelInvalid(
            f"{origin} has {kind}s {', '.join(sorted(found))}, but the manifest says"
            f" {', '.join(names)}"
        )
    for spec in specs:
        _check_tensor(found[spec.name], spec, f"{kind} {spec.name}", origin=origin)


def _check_tensor(value: ValueInfoProto, spec: TensorSpec, label: str, *, origin: str) -> None:
    """Compare type and sizes; a size that *spec* gives as a letter must be free in the graph."""
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
    for tensor in (tensor for tensor in tensors if tensor.data_type in floating):
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError as error:
            raise ModelInvalid(
                f"{origin}: tensor {tensor.name!r} does not hold the values that its shape"
                f" promises: {error}"
            ) from error
        # Graphs write an open bound (Clip, Max) as one infinity; a weight is never a scalar.
        bad = np.isnan(values) if values.size == 1 else ~np.isfinite(values)
        if bad.any():
            raise ModelInvalid(
                f"{origin}: NaN weights refused: {int(bad.sum())} of {values.size} values of tensor"
                f" {tensor.name!r} are NaN or infinite. The training run diverged: lower its"
                " learning rate and export again"
            )


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor inside *message*: initializers, attributes, subgraphs, functions, training."""
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in value if field.is_repeated else [value]:
            if isinstance(child, TensorProto):
                yield child
            else:
                yield from _tensors(child)
