"""What the inspecting process answers: layers, feature maps and preprocessing, as JSON.

Letters used in shapes: C channels, h and w cells of a map, H and W pixels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inspection.layers import Layer, layer_named
from models.inspection.sentences import sentence
from models.package.manifest import ImageLimits, Manifest, PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.pixels.steps import Record
from service.inspection.contact_sheet import Channels, channels_of, png, values_of
from service.inspection.open_versions import Graph, OpenVersions, served_manifest
from service.inspection.packages import files_of

Document = dict[str, Any]
"""Any: JSON."""


class Inspection:
    """Answers requests about packages, and keeps what the next one may need."""

    def __init__(self) -> None:
        self._open = OpenVersions()

    def answer(self, request: Mapping[str, Any], image: bytes) -> bytes:
        """The JSON document for *request*. Raises `LoupeError`."""
        self._open.keep_only(request["served"])
        make = {"layers": self._layers, "features": self._features, "preprocess": self._preprocess}
        document = {"model": request["model"]} | make[request["what"]](request, image)
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()

    def _layers(self, request: Mapping[str, Any], _: bytes) -> Document:
        graph = self._graph(request)
        layers = graph.measured() if request["timed"] else graph.layers
        times = [layer.measured_ms for layer in layers if layer.measured_ms is not None]
        return {
            "precision": request["precision"],
            "precisions": list(files_of(graph.manifest)),
            "image_size": list(graph.manifest.preprocess.crop),
            "layers": [layer_document(layer) for layer in layers],
            "totals": {
                "parameters": sum(layer.parameters for layer in layers),
                "multiply_adds": sum(layer.multiply_adds for layer in layers),
                "milliseconds": round(sum(times), 3) if times else None,
            },
        }

    def _features(self, request: Mapping[str, Any], image: bytes) -> Document:
        graph = self._graph(request)
        layer = layer_named(graph.layers, request["layer"])
        channels = Channels.parse(request["channels"])
        marks = [time.perf_counter()]
        pixels_HWC = to_pixels(image, _spec(graph.manifest, request))
        marks.append(time.perf_counter())
        found = _channels_first(graph.values(layer, pixels_HWC), layer)
        marks.append(time.perf_counter())
        drawn = channels_of(found, channels, layer) if has_maps(layer) else values_of(found, layer)
        marks.append(time.perf_counter())
        names = ("decode", "inference", "draw")
        spent_s = zip(names, np.diff(marks), strict=True)
        return {
            "precision": request["precision"],
            "layer": layer.name,
            "kind": layer.kind,
            "shape": list(layer.shape),
            **drawn,
            "timing_ms": {name: round(float(second) * 1000.0, 3) for name, second in spent_s},
        }

    def _preprocess(self, request: Mapping[str, Any], image: bytes) -> Document:
        manifest = served_manifest(Path(request["package"]), request["sha256"])
        record = Record()
        pixels_HWC = to_pixels(image, _spec(manifest, request), record=record)
        return record_document(record) | {"pixels_png": png(pixels_HWC)}

    def _graph(self, request: Mapping[str, Any]) -> Graph:
        return self._open.graph(
            Path(request["package"]), request["precision"], sha256=request["sha256"]
        )


def layer_document(layer: Layer) -> Document:
    """*layer* as JSON: sizes in cells, times in milliseconds, the field in pixels."""
    padding, field = layer.padding, layer.field
    return {
        "name": layer.name,
        "kind": layer.kind,
        "inputs": list(layer.inputs),
        "output_shape": [1, *layer.shape],
        "kernel": layer.kernel,
        "stride": layer.stride,
        "padding": None if padding is None else [padding[0::2], padding[1::2]],
        "dilation": layer.dilation,
        "groups": layer.groups,
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "bytes": layer.bytes_moved,
        "formula": layer.formula,
        "sentence": sentence(layer),
        "receptive_field": None
        if field is None
        else {
            "size": _axes(layer, "size"),
            "jump": _axes(layer, "jump"),
            "start": _axes(layer, "start"),
            "whole_image": field.whole,
        },
        "milliseconds": None if layer.measured_ms is None else round(layer.measured_ms, 4),
        "has_maps": has_maps(layer),
    }


def has_maps(layer: Layer) -> bool:
    """Whether *layer* gives maps of more than one cell."""
    return len(layer.shape) == 3 and layer.shape[1] * layer.shape[2] > 1


def record_document(record: Record) -> Document:
    """What the preprocessing did, as JSON."""
    file = {
        "format": record.format,
        "bytes": record.bytes,
        "size": record.size,
        "mode": record.mode,
        "orientation": record.orientation,
        "colour_profile": record.colour_profile,
    }
    steps = [
        {name: value for name, value in asdict(step).items() if value is not None}
        for step in record.steps
    ]
    return {"file": file, "steps": steps, "crop_in_photo": record.crop_in_photo}


def _axes(layer: Layer, name: str) -> list[float] | None:
    field = layer.field
    if field is None or field.rows is None or field.columns is None:
        return None
    return [getattr(field.rows, name), getattr(field.columns, name)]


def _channels_first(values: NDArray[np.float32], layer: Layer) -> NDArray[np.float32]:
    last = layer.field is not None and layer.field.spatial == (1, 2) and values.ndim == 3
    return values.transpose(2, 0, 1) if last else values


def _spec(manifest: Manifest, request: Mapping[str, Any]) -> PreprocessSpec:
    return manifest.preprocess.within(ImageLimits(**request["limits"]))
