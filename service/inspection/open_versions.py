"""The graphs and sessions that the inspecting process keeps, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from models.errors import PackageTampered
from models.inspection.feature_maps import session_with_outputs
from models.inspection.layers import Layer, layers_of
from models.inspection.operations import operations_of
from models.inspection.timing import measured_layers
from models.package.manifest import MODEL_FILE, Manifest
from models.package.manifest_file import read_manifest
from models.package.verify import checked, read_chunks
from models.runtime.answer_graph import answering_part
from service.inspection.packages import files_of

KEPT_BYTES = 256 << 20
"""Most bytes of graphs and sessions. The one in use stays, whatever its size."""


@dataclass
class Graph:
    """One network of a package: its graph up to the answer, its layers, a session a layer."""

    manifest: Manifest
    encoded: bytes = field(repr=False)
    layers: list[Layer]
    timed: list[Layer] | None = None

    def measured(self) -> list[Layer]:
        """The layers with their milliseconds, measured once."""
        if self.timed is None:
            self.timed = measured_layers(self.encoded, self.layers)
        return self.timed


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


def open_graph(package: Path, precision: str, sha256: str) -> Graph:
    """The network of *package* in *precision*; *sha256* is the hash of the served model.onnx.

    Raises `PackageError` if the package is not the one that is served, or was damaged.
    """
    manifest = served_manifest(package, sha256)
    name = files_of(manifest)[precision]
    chunks = checked(read_chunks(package / name), manifest.files[name], origin=str(package / name))
    encoded, _ = answering_part(b"".join(chunks))
    operations = operations_of(encoded, image_size=manifest.preprocess.crop)
    layers = layers_of(operations, operations[0].inputs[0], channels_last=True)
    return Graph(manifest, encoded, layers)


class OpenVersions:
    """Graphs and sessions, the least recently used dropped first."""

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[Hashable, ...], tuple[object, int]] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size in self._kept.values())

    def keep_only(self, served: Collection[str]) -> None:
        """Drop what belongs to no model with a hash in *served*: its version was unloaded."""
        for key in [key for key in self._kept if key[0] not in served]:
            del self._kept[key]

    def graph(self, package: Path, precision: str, *, sha256: str) -> Graph:
        """The network of *package* in *precision*. Raises `PackageError`."""
        key = (sha256, precision)
        found = self._get(key)
        if not isinstance(found, Graph):
            found = open_graph(package, precision, sha256)
            self._put(key, found, len(found.encoded))
        return found

    def session(
        self, graph: Graph, precision: str, layer: Layer, *, sha256: str
    ) -> ort.InferenceSession:
        """A session of *graph* up to *layer*."""
        key = (sha256, precision, layer.output)
        found = self._get(key)
        if not isinstance(found, ort.InferenceSession):
            found, size = open_session(graph, layer)
            self._put(key, found, size)
        return found

    def _get(self, key: tuple[Hashable, ...]) -> object | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _put(self, key: tuple[Hashable, ...], value: object, size: int) -> None:
        self._kept[key] = (value, size)
        while len(self._kept) > 1 and self.held_bytes > self._limit_bytes:
            self._kept.popitem(last=False)


def open_session(graph: Graph, layer: Layer) -> tuple[ort.InferenceSession, int]:
    """A session of *graph* up to *layer*, and about how many bytes its weights take."""
    session = session_with_outputs(graph.encoded, [layer.output], threads=1)
    weights = sum(one.parameters * 4 for one in graph.layers[: graph.layers.index(layer) + 1])
    return session, weights + (1 << 20)
