"""Small models as other people's tools write them.

Letters used in shapes: N images, C channels, K classes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CHANNELS = 5
LABELS = ("ant", "bee", "wasp")


def convolutional(
    *,
    classes: int = 3,
    layout: str = "nchw",
    colours: int = 3,
    batch: int | str = "batch",
    dtype: int = TensorProto.FLOAT,
    ending: str = "",
    hidden: bool = False,
    opset: int = 17,
    size: int | str = SIZE,
) -> onnx.ModelProto:
    """Convolution, ReLU, global mean, a linear layer (with *hidden* two), and *ending*."""
    rng = np.random.default_rng(classes)
    wide = 7 if hidden else CHANNELS
    weights = {
        "kernel": rng.normal(size=(CHANNELS, colours, 3, 3)),
        "bias": rng.normal(size=CHANNELS),
        "weight": rng.normal(size=(classes, wide)),
        "shift": rng.normal(size=classes),
    }
    if hidden:
        weights |= {
            "first": rng.normal(size=(wide, CHANNELS)),
            "first_shift": rng.normal(size=wide),
        }
    numbers = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    nodes = []
    value = "pixels"
    if dtype == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [value], ["float"], to=TensorProto.FLOAT))
        value = "float"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [value], ["turned"], perm=[0, 3, 1, 2]))
        value = "turned"
    nodes += [
        helper.make_node(
            "Conv", [value, "kernel", "bias"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["map"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
    ]
    value = "flat"
    if hidden:
        nodes += [
            helper.make_node("Gemm", [value, "first", "first_shift"], ["wide"], transB=1),
            helper.make_node("Relu", ["wide"], ["wide_relu"]),
        ]
        value = "wide_relu"
    last = "before" if ending else "scores"
    nodes.append(helper.make_node("Gemm", [value, "weight", "shift"], [last], transB=1))
    if ending:
        nodes.append(helper.make_node(ending, ["before"], ["scores"]))
    shape = {
        "nchw": [batch, colours, size, size],
        "nhwc": [batch, size, size, colours],
    }[layout]
    kind = TensorProto.FLOAT16 if dtype == TensorProto.FLOAT16 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", dtype, shape)],
        [helper.make_tensor_value_info("scores", kind, [batch, classes])],
        [numpy_helper.from_array(value.astype(numbers), name) for name, value in weights.items()],
    )
    return made(graph, opset=opset)


def of_ultralytics(
    *, size: int = SIZE, labels: Sequence[str] = LABELS, task: str = "classify"
) -> onnx.ModelProto:
    """As `yolo export model=best-cls.pt format=onnx` writes it, with its metadata."""
    model = convolutional(classes=len(labels), ending="Softmax", size=size)
    facts = {
        "description": "Ultralytics YOLO11n-cls model trained on imagenet",
        "author": "Ultralytics",
        "task": task,
        "imgsz": f"[{size}, {size}]",
        "names": str(dict(enumerate(labels))),
    }
    helper.set_model_props(model, facts)
    return model


def torchserve_archive(
    path: Path,
    content: bytes,
    name: str,
    labels: Sequence[str] = LABELS,
    *,
    handler: str = "image_classifier",
) -> Path:
    """*path*, as torch-model-archiver writes it, with the serialised file *name*."""
    model = {"modelName": "ants", "serializedFile": name, "handler": handler, "modelFile": "net.py"}
    names = {str(index): [f"n{index}", label] for index, label in enumerate(labels)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.writestr("index_to_name.json", json.dumps(names))
        archive.writestr("net.py", "raise SystemExit('it ran')")
        archive.writestr(name, content)
    return path


def made(graph: onnx.GraphProto, *, opset: int = 17) -> onnx.ModelProto:
    """A model of *graph*, checked."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def saved(model: onnx.ModelProto, path: Path, **options: object) -> Path:
    """*path*, with *model* in it."""
    onnx.save(model, str(path), **options)
    return path


def write_labels(folder: Path, labels: Sequence[str] = LABELS) -> Path:
    """A file with *labels*, one a line."""
    path = folder / "labels.txt"
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return path


def asked(model: onnx.ModelProto, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """What ONNX Runtime gives for *inputs*, one by one, as an author's own script would ask."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[np.newaxis]})[0] for one in inputs])
