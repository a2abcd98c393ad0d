"""Small graphs with one layer of any shape, as packages from elsewhere might have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.inspection.layers import layers_of
from models.inspection.operations import operations_of
from models.package.manifest import PreprocessSpec
from training.inside.subject import InspectedNetwork

SIZE = 12
CLASSES = 3
SPEC = PreprocessSpec(crop=(SIZE, SIZE), resize_size=SIZE)


def photo(folder: Path, seed: int = 0) -> Path:
    """A photo of noise, of the size that the graphs take."""
    file = folder / f"{seed}.png"
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(file)
    return file


def subject(
    kind: str = "Conv",
    *,
    inputs: int = 3,
    outputs: int = 4,
    bias: bool = True,
    **attributes: object,
) -> InspectedNetwork:
    """image -> 1x1 convolution to *inputs* channels -> the layer `made` -> mean -> logits."""
    rng = np.random.default_rng(1)
    groups = attributes.get("group", 1)
    kernel = attributes["kernel_shape"]
    filters = outputs if kind == "Conv" else inputs
    weights = {
        "first.weight": rng.normal(size=(inputs, 3, 1, 1)),
        "head.weight": rng.normal(size=(filters, CLASSES)),
        "scale": np.float32(1 / 128),
        "axes": np.asarray([2, 3]),
    }
    names = ["first"]
    if kind == "Conv":
        weights["made.weight"] = rng.normal(size=(outputs, inputs // groups, *kernel))
        names.append("made.weight")
        if bias:
            weights["made.bias"] = rng.normal(size=outputs)
            names.append("made.bias")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["small"]),
        helper.make_node("Conv", ["small", "first.weight"], ["first"], kernel_shape=[1, 1]),
        helper.make_node(kind, names, ["made"], **attributes),
        helper.make_node("Relu", ["made"], ["active"]),
        helper.make_node("ReduceMean", ["active", "axes"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "head.weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "one layer",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES])
            for name in ("logits", "probabilities")
        ],
        [
            numpy_helper.from_array(
                np.asarray(value, np.int64 if name == "axes" else np.float32), name
            )
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    encoded = model.SerializeToString()
    onnx.checker.check_model(model)
    operations = operations_of(encoded, image_size=SPEC.crop)
    return InspectedNetwork(
        title="a graph",
        layers=layers_of(operations, operations[0].inputs[0], channels_last=True),
        spec=SPEC,
        labels=("a", "b", "c"),
        encoded=encoded,
        model=encoded,
        outputs=frozenset({"logits", "probabilities"}),
    )
