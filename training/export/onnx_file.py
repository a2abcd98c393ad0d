"""A network as one checked ONNX file, with labels and preprocessing in its metadata."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import torch

from models.errors import ExportError
from models.networks.network import ServedGraph
from models.package.manifest import PreprocessSpec, TensorSpec

OPSET = 20
Exporter = Literal["torch.onnx dynamo", "torch.onnx legacy"]
EXPORTERS: tuple[Exporter, ...] = ("torch.onnx dynamo", "torch.onnx legacy")
"""In the order in which they are tried."""
METADATA_PREFIX = "loupe."


def to_onnx(graph: ServedGraph, spec: PreprocessSpec, exporter: Exporter = EXPORTERS[0]) -> bytes:
    """*graph* as one ONNX file with a dynamic batch, checked by ONNX's own checker.

    Raises whatever the exporter raises. Nothing is simplified afterwards, because the exporter
    already folds batch normalisation and constants (docs/quantisation.md).
    """
    # A batch of 2: the exporter takes a size of 1 for a constant.
    example = torch.zeros((2, *spec.crop, 3), dtype=torch.uint8)
    with quiet_exporter():
        model = (
            _by_dynamo(graph, example)
            if exporter == "torch.onnx dynamo"
            else _by_tracing(graph, example)
        )
    for node in model.graph.node:
        # torch writes the paths of source files here, which tell where a model was trained.
        del node.metadata_props[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


def first_that_passes(
    graph: ServedGraph, spec: PreprocessSpec, check: Callable[[bytes, Exporter], None]
) -> tuple[bytes, Exporter]:
    """The file of the first exporter that neither fails nor is refused by *check*, and its name.

    Raises `ExportError` with the error of each exporter, so that an operator that cannot be
    exported is named.
    """
    errors: dict[Exporter, Exception] = {}
    for exporter in EXPORTERS:
        try:
            encoded = to_onnx(graph, spec, exporter)
        except Exception as error:  # noqa: BLE001 - exporters raise anything; the next one is tried, and the message names each error
            errors[exporter] = error
            continue
        try:
            check(encoded, exporter)
        except ExportError as error:
            errors[exporter] = error
            continue
        return encoded, exporter
    for found in errors.values():
        if isinstance(found, ExportError):
            # A graph that came out wrong says more than an exporter that gave up.
            raise found
    reasons = "; ".join(f"{exporter}: {first_line(error)}" for exporter, error in errors.items())
    raise ExportError(
        f"the network cannot be exported to ONNX opset {OPSET} ({reasons}). Replace the operator"
        " that is named, or write what it computes with operators that ONNX has"
    ) from next(iter(errors.values()))


def described(encoded: bytes, metadata: Mapping[str, object]) -> bytes:
    """*encoded* with *metadata* in it: strings as they are, everything else as JSON."""
    model = onnx.ModelProto.FromString(encoded)
    found = {entry.key: entry.value for entry in model.metadata_props}
    written = {
        f"{METADATA_PREFIX}{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    onnx.helper.set_model_props(model, found | written)
    serialised: bytes = model.SerializeToString()
    return serialised


def _by_dynamo(graph: ServedGraph, example: torch.Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes={"image": {0: torch.export.Dim("N")}},
        input_names=["image"],
        output_names=list(graph.outputs),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _by_tracing(graph: ServedGraph, example: torch.Tensor) -> onnx.ModelProto:
    stream = io.BytesIO()
    torch.onnx.export(
        graph,
        (example,),
        stream,  # type: ignore[arg-type]  # a stream is taken, and only its annotation knows none
        dynamo=False,
        dynamic_axes={name: {0: "N"} for name in ("image", *graph.outputs)},
        input_names=["image"],
        output_names=list(graph.outputs),
        opset_version=OPSET,
    )
    model: onnx.ModelProto = onnx.ModelProto.FromString(stream.getvalue())
    _untie(model)
    return model


def _untie(model: onnx.ModelProto) -> None:
    """Give each reader a constant of its own again.

    Tracing shares equal constants through `Identity`, behind which int8 sees no constant.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in constants:
            model.graph.initializer.add().CopyFrom(constants[node.input[0]])
            model.graph.initializer[-1].name = node.output[0]
            model.graph.node.remove(node)


def first_line(error: Exception) -> str:
    """What went wrong at the root of *error*, without the exporter's stack and advice."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    first = next((line.strip() for line in str(root).splitlines() if line.strip()), "no message")
    return f"{type(root).__name__}: {first}"


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter logs and warns about itself: the gates decide what matters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def output_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The graph's outputs as it declares them, with the legend's letter for the batch."""
    graph = onnx.load(path).graph
    return tuple(
        TensorSpec(
            name=value.name,
            dtype="float32",
            shape=tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in graph.output
    )
