"""The graphs that the inspecting process keeps, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import PackageTampered
from models.inspection.feature_maps import feature_maps, session_with_outputs, without_weights
from models.inspection.layers import Layer, layers_of
from models.inspection.operations import operations_of
from models.inspection.timing import measured_layers
from models.machine import give_back_memory
from models.package.manifest import MODEL_FILE, Manifest
from models.package.manifest_file import read_manifest
from models.package.verify import checked, read_chunks
from models.runtime.weights import Weights
from service.inspection.packages import files_of

KEPT_BYTES = 256 << 20
"""Most bytes of weights. The graph in use stays, whatever its size."""


@dataclass
class Graph:
    """One network of a package: its graph up to the answer, weights beside it, and its layers."""

    manifest: Manifest
    encoded: bytes = field(repr=False)
    weights: Weights = field(repr=False)
    layers: list[Layer]
    _timed: list[Layer] | None = None

    @property
    def held_bytes(self) -> int:
        """Of the weights."""
        return sum(weight.numpy().nbytes for weight in self.weights.values())

    def measured(self) -> list[Layer]:
        """The layers with their milliseconds, measured once."""
        if self._timed is None:
            self._timed = measured_layers(self.encoded, self.layers, weights=self.weights)
        return self._timed

    def values(self, layer: Layer, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What *layer* answers to one image, in the graph's layout, without the batch axis.

        A session for each call: it shares the weights, and opens faster than it runs.
        """
        session = session_with_outputs(
            self.encoded, [layer.output], threads=1, weights=self.weights
        )
        [values] = feature_maps(session, pixels_HWC[np.newaxis])
        return np.asarray(values[0], dtype=np.float32)


def served_manifest(package: Path, sha256: str) -> Manifest:
    """The manifest of *package*, whose model.onnx must have the hash of the served one.

    Raises `PackageTampered` if another package lies there by now.
    """
    manifest = read_manifest(package)
    if manifest.files[MODEL_FILE].sha256 != sha256:
        raise PackageTampered(
            f"{package} was replaced by another package while it was in use; open it again"
        )
    return manifest


def open_graph(package: Path, precision: str, *, sha256: str) -> Graph:
    """The network of *package* in *precision*; *sha256* is the hash of the served model.onnx.

    Raises `PackageError` if the package is not the one that is served, or was damaged.
    """
    manifest = served_manifest(package, sha256)
    name = files_of(manifest)[precision]
    chunks = checked(read_chunks(package / name), manifest.files[name], origin=str(package / name))
    encoded, weights = without_weights(b"".join(chunks))
    give_back_memory()
    operations = operations_of(encoded, image_size=manifest.preprocess.crop, weights=weights)
    layers = layers_of(operations, operations[0].inputs[0], channels_last=True)
    return Graph(manifest, encoded, weights, layers)


class OpenVersions:
    """Open graphs, the least recently used dropped first."""

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, str], Graph] = OrderedDict()

    def keep_only(self, served: Collection[str]) -> None:
        """Drop what belongs to no model with a hash in *served*: its version was unloaded."""
        for key in [key for key in self._kept if key[0] not in served]:
            del self._kept[key]

    def graph(self, package: Path, precision: str, *, sha256: str) -> Graph:
        """The network of *package* in *precision*. Raises `PackageError`."""
        key = (sha256, precision)
        if key not in self._kept:
            # First the room, then the graph: else the bound would be passed meanwhile.
            self._make_room((package / MODEL_FILE).stat().st_size)
            self._kept[key] = open_graph(package, precision, sha256=sha256)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _make_room(self, size: int) -> None:
        while self._kept and self._held_bytes() + size > self._limit_bytes:
            self._kept.popitem(last=False)

    def _held_bytes(self) -> int:
        return sum(graph.held_bytes for graph in self._kept.values())
