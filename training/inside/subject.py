"""What `loupe inspect` looks at: a network by name, a run, or a package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BadRequest, RequestError
from models.inspection.layers import Layer, layers_of
from models.messages import one_line
from models.package.manifest import MANIFEST_FILE, PreprocessSpec
from models.settings import load_store_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.networks.inputs import Rgb
    from models.networks.network import Network

MOST_PX = 8192
"""Largest side of an image, as `PreprocessSpec` has it."""
PUBLISHED_CLASSES = 1000
"""Classes of a network that is given by name, where it has published weights."""
CLASSES = 10
"""Where it has none."""


@dataclass(frozen=True, kw_only=True)
class InspectedNetwork:
    """A network and its layers for one image."""

    title: str
    layers: list[Layer]
    spec: PreprocessSpec
    """How a photo becomes its input."""
    labels: tuple[str, ...] = ()
    """Empty: the classes have no names."""
    encoded: bytes | None = None
    """The graph up to its answer; None: only shapes were asked for."""
    model: bytes | None = None
    """The whole graph."""
    outputs: frozenset[str] = frozenset()
    """Names of what the whole graph gives."""
    packaged: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.spec.crop


def open_subject(
    reference: str,
    *,
    store: Path | None = None,
    image_size: tuple[int, int] | None = None,
    computes: bool = True,
    weights: str | None = None,
) -> InspectedNetwork:
    """The subject called *reference*.

    It is the folder of a package or a run, a model of *store* (None: the one of the settings), or a
    network's name. *image_size* overrides the size of a network or a run. With *computes* the
    subject has a graph, for which a network or a run is exported. *weights* are those of a network
    by name; None: the published ones, or random ones where there are none. Raises `BadRequest` for
    a name that is none of these, and errors of the package, the run or the network.
    """
    folder = Path(reference)
    if (folder / MANIFEST_FILE).is_file():
        return _package(folder, image_size)
    if (folder / "run.json").is_file():
        return _run(folder, image_size, computes=computes)
    if folder.is_dir():
        raise BadRequest(
            f"{reference} is neither a package (no {MANIFEST_FILE}) nor a run (no run.json)"
        )
    stored = _stored(reference, store or load_store_settings().store)
    if stored is not None:
        return _package(stored, image_size)
    return _network(reference, image_size, computes=computes, weights=weights)


def photo_pixels(image: Path, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The network's input `uint8 [H,W,3]` for the photo *image*.

    Raises `RequestError` with the name of the file for an image that cannot be used.
    """
    from models.pixels.preprocess import to_pixels

    try:
        return to_pixels(image.read_bytes(), spec)
    except RequestError as error:
        raise type(error)(f"{one_line(str(image))}: {error}") from error


def first_convolution(subject: InspectedNetwork) -> str:
    """The name of the first convolution. Raises `BadRequest` if there is none."""
    for layer in subject.layers:
        if "convolution" in layer.kind:
            return layer.name
    raise BadRequest(f"{subject.title} has no convolution; name a layer with --layer")


def class_index(labels: Sequence[str], label: str) -> int:
    """The place of *label*. Raises `BadRequest` with the labels that there are."""
    if label not in labels:
        shown = ", ".join(labels[:20])
        more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
        raise BadRequest(f"no class {label!r}; the classes are {shown}{more}")
    return labels.index(label)


def _package(folder: Path, image_size: tuple[int, int] | None) -> InspectedNetwork:
    from models.package.verify import verify_package

    package = verify_package(folder)
    spec, network = package.manifest.preprocess, package.manifest.architecture.network
    if image_size is not None and image_size != spec.crop:
        raise BadRequest(
            f"--input {_written(image_size)}: the graph of {folder} takes images of"
            f" {_written(spec.crop)} only. Inspect its network by name to see other sizes:"
            f" {network}"
        )
    return _with_graph(
        f"{network} in {one_line(str(folder))}",
        package.model,
        spec,
        package.manifest.labels,
        packaged=True,
    )


def _run(folder: Path, image_size: tuple[int, int] | None, *, computes: bool) -> InspectedNetwork:
    from training.fit.inputs import normalisation, preprocess_spec
    from training.runs.run import open_run

    run = open_run(folder)
    spec = preprocess_spec(run.config)
    if image_size is not None:
        share = spec.crop[0] / spec.resize_size
        spec = _resized(spec, image_size, max(1, round(min(image_size) / share)))
    return _of_torch(
        f"{run.config.network} of run {one_line(str(folder))}",
        run.config.network,
        spec,
        labels=run.record.labels,
        normalisation=normalisation(run.config),
        fill=(lambda network: network.load_state_dict(run.load_weights())) if computes else None,
    )


def _network(
    name: str, image_size: tuple[int, int] | None, *, computes: bool, weights: str | None
) -> InspectedNetwork:
    from models.errors import ConfigError
    from models.networks.catalogue import entry
    from models.networks.weights import load_weights

    try:
        found = entry(name)
    except ConfigError as error:
        raise BadRequest(
            f"{name!r} is no folder of a package or a run, no model in the store, and no network:"
            f" {error}"
        ) from error
    chosen = weights or ("default" if found.published else "none")
    inputs = found.inputs(chosen)
    size = image_size or (inputs.image_size, inputs.image_size)
    categories = found.weights.meta["categories"] if found.weights else ()
    classes = found.timm.num_classes if found.timm else 0
    known = found.published and chosen != "none"
    random = computes and chosen == "none"

    def fill(network: Network) -> None:
        load_weights(network, name, chosen, image_size=min(size))

    spec = PreprocessSpec(resize=inputs.resize, filter=inputs.filter)
    return _of_torch(
        f"{name} with random weights" if random else name,
        name,
        _resized(spec, size, inputs.resize_size(min(size))),
        labels=_labels(categories if known else (), classes or _classes(found.published)),
        fill=fill if computes else None,
        normalisation=(inputs.mean, inputs.std),
    )


def _classes(published: bool) -> int:
    return PUBLISHED_CLASSES if published else CLASSES


def _labels(categories: Sequence[str], classes: int) -> tuple[str, ...]:
    """*categories*, or numbers where the classes have no names that are known here."""
    return tuple(categories) or tuple(map(str, range(classes)))


def _resized(spec: PreprocessSpec, size: tuple[int, int], resize_size: int) -> PreprocessSpec:
    """*spec* for another size: the usual border is cut off where there is room."""
    side = max(*size, min(MOST_PX, resize_size))
    return spec.model_copy(update={"crop": size, "resize_size": side})


def _of_torch(
    title: str,
    name: str,
    spec: PreprocessSpec,
    *,
    labels: tuple[str, ...],
    fill: Callable[[Network], object] | None,
    normalisation: tuple[Rgb, Rgb],
) -> InspectedNetwork:
    """The network *name* with the weights that *fill* puts into it; None: without weights."""
    import torch

    from models.networks.catalogue import build
    from models.networks.network import ServedGraph
    from models.networks.torch_operations import IMAGE, WithoutValues, operations_of_network

    with torch.device("cpu" if fill else "meta"), WithoutValues():
        network = build(name, num_classes=len(labels), image_size=min(spec.crop))
    if fill is None:
        layers = layers_of(operations_of_network(network, spec.crop), IMAGE)
        return InspectedNetwork(title=title, layers=layers, spec=spec, labels=labels)
    from training.export.onnx_file import to_onnx

    fill(network)
    mean, std = normalisation
    graph = ServedGraph(network.eval(), mean=mean, std=std, temperature=1.0)
    return _with_graph(title, to_onnx(graph, spec), spec, labels, packaged=False)


def _with_graph(
    title: str, model: bytes, spec: PreprocessSpec, labels: tuple[str, ...], *, packaged: bool
) -> InspectedNetwork:
    import onnx

    from models.inspection.operations import operations_of
    from models.runtime.answer_graph import answering_part

    encoded, _ = answering_part(model)
    outputs = onnx.load_model_from_string(model).graph.output
    operations = operations_of(encoded, image_size=spec.crop)
    return InspectedNetwork(
        title=title,
        layers=layers_of(operations, operations[0].inputs[0], channels_last=True),
        spec=spec,
        labels=labels,
        encoded=encoded,
        model=model,
        outputs=frozenset(output.name for output in outputs),
        packaged=packaged,
    )


def _stored(reference: str, store: Path) -> Path | None:
    """The package's folder, if the store has a model of that name; None otherwise."""
    from models.store.store import Store

    found = Store(store)
    name = reference.partition("@")[0].partition(":")[0]
    return found.resolve(reference).path if name in found.names() else None


def _written(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
