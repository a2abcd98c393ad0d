"""A tiny real model package, for tests that need one: a graph that runs, golden images that hold, a
manifest that is true.

Letters used in shapes: N images, H and W pixels, K classes, D features.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.package.manifest import (
    GOLDEN_FOLDER,
    MODEL_FILE,
    Architecture,
    DataFingerprint,
    DriftReference,
    Evaluation,
    Histogram,
    Interval,
    Lineage,
    Manifest,
    Parity,
    PreprocessSpec,
    Provenance,
    TensorSpec,
)
from models.package.manifest_file import read_manifest, record_files, write_manifest
from models.package.verify import GoldenImage, parse_golden, write_golden

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURES = 3
OPSET = 20
GOLDEN_IMAGES = 3


def build_package(
    folder: Path,
    *,
    labels: Sequence[str] = ("ant", "bee"),
    seed: int = 0,
    size: int = 8,
    cam: bool = False,
) -> Path:
    """*folder*, made and filled with a package of *labels* that takes images of *size* x *size*
    pixels.

    With *cam* its graph has class-activation maps, a cell for each pixel.

    Another *seed* gives other weights, so another model. Golden images are PNG files of just that
    size, so that the graph can be asked for their probabilities without `models.pixels.preprocess`.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    model = build_graph(classes=len(labels), size=size, rng=rng)
    if cam:
        add_class_activation(model, classes=len(labels), size=size)
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    pixels_NHWC = rng.integers(0, 256, size=(GOLDEN_IMAGES, size, size, 3), dtype=np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    probabilities_NK: NDArray[np.float32] = session.run(["probabilities"], {"image": pixels_NHWC})[
        0
    ]
    golden = [
        GoldenImage(
            file=f"{index}.png",
            encoded=encode_png(pixels_HWC),
            probabilities=tuple(map(float, probabilities_NK[index])),
        )
        for index, pixels_HWC in enumerate(pixels_NHWC)
    ]
    write_golden(folder, golden, tolerance=1e-3)
    (folder / "report.html").write_text(
        "<!doctype html><title>Evaluation</title>\n", encoding="utf-8"
    )
    (folder / "report.json").write_text("{}\n", encoding="utf-8")
    manifest = build_manifest(folder, labels=tuple(labels), seed=seed, size=size)
    maps = TensorSpec(name="cam", dtype="float32", shape=("N", len(labels), size, size))
    write_manifest(
        folder,
        manifest.model_copy(update={"outputs": (*manifest.outputs, maps)}) if cam else manifest,
    )
    return folder


def build_graph(*, classes: int, size: int, rng: np.random.Generator) -> onnx.ModelProto:
    """uint8 `image` [N,H,W,3] -> normalise -> mean over the pixels (`embedding` [N,D]) -> linear
    (`logits`) -> softmax (`probabilities`).
    """
    weights = {
        "mean": np.asarray(MEAN, dtype=np.float32) * 255,
        "std": np.asarray(STD, dtype=np.float32) * 255,
        "axes": np.asarray([1, 2], dtype=np.int64),
        "weight": rng.normal(scale=4.0, size=(FEATURES, classes)).astype(np.float32),
        "bias": rng.normal(size=classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["raw"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["raw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        helper.make_node("ReduceMean", ["normalised", "axes"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", FEATURES]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="loupe-tests",
    )


def add_class_activation(model: onnx.ModelProto, *, classes: int, size: int) -> None:
    """Give *model* the output `cam` [N,K,H,W]: the evidence of each pixel, whose sum over all of
    them is the logit less its bias.
    """
    model.graph.initializer.append(numpy_helper.from_array(np.float32(size * size), "cells"))
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["normalised", "weight"], ["pushed"]),
            helper.make_node("Transpose", ["pushed"], ["turned"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["turned", "cells"], ["cam"]),
        ]
    )
    model.graph.output.append(
        helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", classes, size, size])
    )


def build_manifest(folder: Path, *, labels: tuple[str, ...], seed: int, size: int) -> Manifest:
    """The manifest of the other files in *folder*; its metrics and statistics are plausible, not
    measured.
    """
    classes = len(labels)
    unit = Histogram(edges=(0.0, 0.5, 1.0), counts=(50, 50))
    return Manifest(
        schema_version=1,
        architecture=Architecture(
            network="tiny",
            num_parameters=(FEATURES + 1) * classes,
            embedding_size=FEATURES,
            mean=MEAN,
            std=STD,
        ),
        lineage=Lineage(
            weights="none", identifier="random initialisation", sha256=None, run="tests", seed=seed
        ),
        labels=labels,
        preprocess=PreprocessSpec(resize_size=size, crop=(size, size)),
        input=TensorSpec(name="image", dtype="uint8", shape=("N", size, size, 3)),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("N", classes)),
            TensorSpec(name="probabilities", dtype="float32", shape=("N", classes)),
            TensorSpec(name="embedding", dtype="float32", shape=("N", FEATURES)),
        ),
        opset=OPSET,
        precision="fp32",
        cpu_class=None,
        temperature=1.0,
        abstain_threshold=0.0,
        evaluation=Evaluation(
            data="tests",
            split="test",
            count=100,
            metrics={"top1": Interval(value=0.9, low=0.82, high=0.95, method="wilson")},
            provider="cpu",
        ),
        parity=Parity(
            images=8,
            max_probability_difference=1e-6,
            top1_agreement=1.0,
            tolerance=1e-3,
            batch_sizes=(1, 2),
            exporter="onnx.helper",
        ),
        data=DataFingerprint(
            source="tests",
            sha256=hashlib.sha256(b"tests").hexdigest(),
            splits={"test": dict.fromkeys(labels, 50)},
        ),
        reference=DriftReference(
            count=100,
            predicted=(100, *([0] * (classes - 1))),
            confidence=unit,
            brightness=unit,
            sharpness=unit,
            embedding_mean=(0.0,) * FEATURES,
            embedding_distance=Histogram(edges=(0.0, 1.0, 2.0), counts=(50, 50)),
        ),
        provenance=Provenance(
            created="2025-01-01T00:00:00+00:00",
            git_commit=None,
            git_dirty=None,
            python=platform.python_version(),
            platform="tests",
            packages={"onnx": onnx.__version__},
        ),
        files=record_files(folder),
    )


def read_golden(package: Path) -> list[GoldenImage]:
    """The golden images of *package*, unverified."""
    files = {
        f"{GOLDEN_FOLDER}/{path.name}": path.read_bytes()
        for path in (package / GOLDEN_FOLDER).iterdir()
    }
    classes = len(read_manifest(package).labels)
    return list(parse_golden(files, classes=classes, origin=str(package)).images)


def encode_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """*pixels_HWC* as a PNG file, which keeps every value."""
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, format="PNG")
    return stream.getvalue()


def edit_model(package: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph of *package* with *edit* and its hash in the manifest with it, as a bad
    exporter would.
    """
    model = onnx.load_model(package / MODEL_FILE)
    edit(model)
    (package / MODEL_FILE).write_bytes(model.SerializeToString())
    record_again(package)


def record_again(package: Path) -> None:
    """Bring the manifest's hashes up to date with the files of *package*."""
    write_manifest(
        package, read_manifest(package).model_copy(update={"files": record_files(package)})
    )
