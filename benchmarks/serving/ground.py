"""What all scenarios share: a package, a store that serves it, the peers' graph, the photos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packages import build_network_package
from benchmarks.serving.photos import read_photos
from models.package.manifest import MODEL_FILE
from models.runtime.answer_graph import answering_part
from models.store.store import Store

NETWORK, NAME = "mobilenet_v3_small", "mobilenet"


@dataclass(frozen=True)
class Ground:
    """Paths and photos of one run of the benchmark."""

    package: Path
    store: Path
    """Holds model `mobilenet`, version 1."""
    model: Path
    """The part of the package's graph that gives the answer, which Loupe runs too.

    With the whole graph, the peers would also compute heat maps.
    """
    data: Path
    photos: list[bytes]


@contextmanager
def ground(data: Path, *, limit: int | None = None) -> Iterator[Ground]:
    """The files of a benchmark in a temporary folder.

    *data* holds `imagenet-500`, of which at most *limit* photos are used.
    """
    photos = read_photos(data, limit=limit)
    with tempfile.TemporaryDirectory(prefix="loupe-ground-") as place:
        folder = Path(place)
        package = build_network_package(folder / "package", network=NETWORK)
        Store(folder / "store").publish(package, name=NAME)
        model = folder / "answering.onnx"
        model.write_bytes(answering_part((package / MODEL_FILE).read_bytes())[0])
        yield Ground(package, folder / "store", model, data, photos)
