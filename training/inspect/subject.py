"""What `loupe inspect` looks at: a network by name, a run, or a package."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BadRequest
from models.inspection.layers import Layer, layers_of
from models.package.manifest import MANIFEST_FILE, Manifest

if TYPE_CHECKING:
    from torch import nn

PUBLISHED_CLASSES = 1000
"""Classes of a network that is given by name, where it has published weights."""
CLASSES = 10
"""Where it has none."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and its layers for one image."""

    title: str
    layers: list[Layer]
    image_size: tuple[int, int]
    """Height and width of the image, in pixels."""
    encoded: bytes | None = None
    """The package's graph up to its answer; None: the subject is a network in torch."""
    manifest: Manifest | None = None


def open_subject(reference: str, *, store: Path, image_size: tuple[int, int] | None) -> Subject:
    """The subject called *reference*.

    It is the folder of a package or a run, a model of *store*, or a network's name.
    *image_size* overrides the size of a network or a run. Raises `BadRequest` for a name that is
    none of these, and errors of the package, the run or the network.
    """
    folder = Path(reference)
    if (folder / MANIFEST_FILE).is_file():
        return _package(folder, image_size)
    if (folder / "run.json").is_file():
        return _run(folder, image_size)
    if folder.is_dir():
        raise BadRequest(
            f"{reference} is neither a package (no {MANIFEST_FILE}) nor a run (no run.json)"
        )
    stored = _stored(reference, store)
    return _package(stored, image_size) if stored else _network(reference, image_size)


def _package(folder: Path, image_size: tuple[int, int] | None) -> Subject:
    from models.inspection.operations import operations_of
    from models.package.verify import verify_package
    from models.runtime.answer_graph import answering_part

    package = verify_package(folder)
    size = package.manifest.preprocess.crop
    if image_size not in {None, size}:
        raise BadRequest(
            f"--input {_written(image_size or size)}: the graph of {folder} takes images of"
            f" {_written(size)} only. Inspect its network by name to see other sizes:"
            f" {package.manifest.architecture.network}"
        )
    encoded, _ = answering_part(package.model)
    operations = operations_of(encoded, image_size=size)
    return Subject(
        title=f"{package.manifest.architecture.network} in {folder}",
        layers=layers_of(operations, operations[0].inputs[0], channels_last=True),
        image_size=size,
        encoded=encoded,
        manifest=package.manifest,
    )


def _run(folder: Path, image_size: tuple[int, int] | None) -> Subject:
    from training.runs.run import open_run

    run = open_run(folder)
    size = image_size or (run.config.image_size, run.config.image_size)
    layers = _traced(run.config.network, classes=len(run.record.labels), image_size=size)
    return Subject(title=f"{run.config.network} of run {folder}", layers=layers, image_size=size)


def _network(name: str, image_size: tuple[int, int] | None) -> Subject:
    from models.networks.catalogue import entry, networks

    if name.partition(",")[0] not in networks():
        near = difflib.get_close_matches(name, networks(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BadRequest(
            f"{name!r} is no folder of a package or a run, no model in the store, and no network."
            f"{hint} Networks: {', '.join(networks())}"
        )
    found = entry(name)
    size = image_size or (found.usual_size, found.usual_size)
    classes = PUBLISHED_CLASSES if found.weights else CLASSES
    return Subject(
        title=name, layers=_traced(name, classes=classes, image_size=size), image_size=size
    )


def _traced(name: str, *, classes: int, image_size: tuple[int, int]) -> list[Layer]:
    import torch

    from models.networks.catalogue import build
    from models.networks.tracing import IMAGE, operations_of_network

    with torch.device("meta"):
        network: nn.Module = build(name, num_classes=classes, image_size=min(image_size))
    return layers_of(operations_of_network(network, image_size), IMAGE)


def _stored(reference: str, store: Path) -> Path | None:
    """The package's folder, if the store has a model of that name; None otherwise."""
    from models.store.store import Store

    found = Store(store)
    name = reference.partition("@")[0].partition(":")[0]
    return found.resolve(reference).path if name in found.names() else None


def _written(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
