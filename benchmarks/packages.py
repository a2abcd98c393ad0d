"""Packages of real networks for benchmarks, without training any."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, SIDE = 1000, 224
GOLDEN_IMAGES = 4
NUMBERED_LABELS = tuple(f"class {index}" for index in range(CLASSES))
LOGITS_STD = 3.0
"""Spread of the built network's logits at its temperature, over classes and images."""


def build_network_package(
    folder: Path, *, network: str = "mobilenet_v2", classes: int = CLASSES
) -> Path:
    """*folder*, made and filled with a valid package of *network*, *classes*, random weights.

    Batch normalisation and temperature are set on noise. So activations and probabilities spread as
    in a trained network. Otherwise every image would get the same answer, in any precision.
    """
    import torch

    from models.networks.catalogue import build
    from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
    from models.package.manifest import MODEL_FILE, PreprocessSpec
    from training.export.onnx_file import to_onnx

    torch.manual_seed(0)
    module = build(network, num_classes=classes)
    noise_N3HW = torch.randn(8, 3, SIDE, SIDE)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        module.train()(noise_N3HW)
        temperature = float(module.eval()(noise_N3HW).std()) / LOGITS_STD
    spec = PreprocessSpec(crop=(SIDE, SIDE))
    folder.mkdir(parents=True)
    graph = ServedGraph(
        module, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=temperature
    ).eval()
    (folder / MODEL_FILE).write_bytes(to_onnx(graph, spec))
    _finish_package(
        folder,
        network=network,
        spec=spec,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        labels=NUMBERED_LABELS[:classes],
    )
    return folder


def build_imagenet_package(folder: Path, *, data: Path) -> Path:
    """*folder*, made and filled with a valid package of ImageNet's MobileNetV2.

    Weights, golden photos and half of the labels come from *data*. The other 500 classes, of which
    *data* has no photo, are called by their number.
    """
    import csv

    from models.networks.catalogue import build
    from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
    from models.networks.weights import load_weights
    from models.package.manifest import MODEL_FILE, PreprocessSpec
    from models.pixels.preprocess import DEFAULT_DCT_MARGIN
    from training.export.onnx_file import to_onnx

    network = build("mobilenet_v2", num_classes=CLASSES).eval()
    load_weights(
        network, "mobilenet_v2", str(data / "weights" / "mobilenet_v2-imagenet1k.safetensors")
    )
    rows = list(
        csv.DictReader(
            (data / "imagenet-500" / "labels.csv").read_text(encoding="utf-8").splitlines()
        )
    )
    names = {int(row["class_index"]): row["name"].replace("_", " ") for row in rows}
    names = {
        index: f"{name} ({index})" if list(names.values()).count(name) > 1 else name
        for index, name in names.items()
    }
    labels = tuple(names.get(index, f"class {index}") for index in range(CLASSES))
    photos = [
        (data / "imagenet-500" / row["file"]).read_bytes()
        for row in rows[:: len(rows) // GOLDEN_IMAGES][:GOLDEN_IMAGES]
    ]
    spec = PreprocessSpec(dct_margin=DEFAULT_DCT_MARGIN)
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(
        to_onnx(
            ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval(), spec
        )
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    _finish_package(
        folder,
        network="mobilenet_v2",
        spec=spec,
        parameters=parameters,
        photos=photos,
        labels=labels,
    )
    return folder


def _finish_package(
    folder: Path,
    *,
    network: str,
    spec: Any,
    parameters: int,
    photos: Sequence[bytes] = (),
    labels: Sequence[str] = NUMBERED_LABELS,
) -> None:
    """Write golden images (drawn ones by default) and a manifest to *folder*, next to its model."""
    import onnx

    from models.package.manifest import MODEL_FILE
    from models.package.manifest_file import write_manifest
    from models.package.verify import GoldenImage, write_golden
    from models.pixels.preprocess import to_pixels
    from models.runtime.session import open_session
    from tests.models.packages import build_manifest

    encoded = list(photos) or [_photo(seed) for seed in range(GOLDEN_IMAGES)]
    model = (folder / MODEL_FILE).read_bytes()
    session = open_session(model, threads=1, provider="cpu", origin=str(folder))
    answers_NK = session.run(
        ["probabilities"], {"image": np.stack([to_pixels(photo, spec) for photo in encoded])}
    )[0]
    golden = [
        GoldenImage(file=f"{n}.jpg", encoded=photo, probabilities=tuple(map(float, answers_NK[n])))
        for n, photo in enumerate(encoded)
    ]
    write_golden(folder, golden, tolerance=1e-3)
    for report in ("report.html", "report.json"):
        (folder / report).write_text("{}\n", encoding="utf-8")
    plain = build_manifest(folder, labels=tuple(labels), seed=0, size=SIDE)
    outputs = _outputs(onnx.load_model_from_string(model))
    features = next(int(output.shape[1]) for output in outputs if output.name == "embedding")
    architecture = plain.architecture.model_copy(
        update={"network": network, "num_parameters": parameters, "embedding_size": features}
    )
    reference = plain.reference.model_copy(update={"embedding_mean": (1.0,) * features})
    changes = {
        "architecture": architecture,
        "preprocess": spec,
        "outputs": outputs,
        "reference": reference,
    }
    write_manifest(folder, plain.model_copy(update=changes))


def _outputs(model: Any) -> tuple[Any, ...]:
    from models.package.manifest import TensorSpec

    sizes = {
        output.name: [size.dim_value or "N" for size in output.type.tensor_type.shape.dim]
        for output in model.graph.output
    }
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=tuple(shape)) for name, shape in sizes.items()
    )


def _photo(seed: int) -> bytes:
    """A JPEG of 500 x 375 pixels with large and small structure.

    Decoding it costs as much as decoding a photo.
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    noisy_HWC = np.clip(
        np.asarray(coarse, np.int16) + rng.integers(-12, 13, size=(375, 500, 3)), 0, 255
    ).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy_HWC).save(stream, format="JPEG", quality=90)
    return stream.getvalue()
