"""Operations read from ONNX graphs: Loupe's own, and graphs from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.errors import PackageError
from models.inspection.layers import Layer, layers_of
from models.inspection.operations import operations_of
from models.inspection.timing import measured_layers
from models.networks.catalogue import build, entry, networks
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.networks.torch_operations import IMAGE, operations_of_network
from models.package.manifest import PreprocessSpec
from models.runtime.answer_graph import answering_part
from training.export.onnx_file import to_onnx

FAST = ("lenet5",)


def graph(nodes: Sequence[NodeProto], image: Sequence[int | str], **weights: np.ndarray) -> bytes:
    """An ONNX model from `image`, float32 of the shape *image*, to what the last node makes."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    encoded: bytes = model.SerializeToString()
    return encoded


def compare_with_torch(name: str) -> list[Layer]:
    """The layers of the exported network, once they are found equal to those in torch."""
    side = 224 if name != "lenet5" else 28
    torch.manual_seed(0)
    network = build(name, num_classes=5).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            # Equal ones, such as biases of zeros, become one in the file, with the name of one.
            torch.nn.init.normal_(parameter)
    served = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0)
    encoded, _ = answering_part(to_onnx(served, PreprocessSpec(crop=(side, side))))
    operations = operations_of(encoded)
    exported = layers_of(operations, IMAGE, channels_last=True)
    traced = layers_of(operations_of_network(network, (side, side)), IMAGE)

    def windows(layers: list[Layer]) -> list[object]:
        # By weight: the order of branches is free.
        found = [
            (layer.name, layer.kind, layer.shape, layer.window, layer.formula, layer.multiply_adds)
            + ((layer.field.rows, layer.field.columns) if layer.field else ())
            for layer in layers
            if layer.multiply_adds and "." in layer.name
        ]
        return sorted(found, key=str)

    assert windows(exported) == windows(traced)
    assert len(windows(exported)) >= 4
    return measured_layers(encoded, exported)


@pytest.mark.parametrize("name", FAST)
def test_an_exported_network_has_the_layers_of_the_network_in_torch(name: str) -> None:
    layers = compare_with_torch(name)
    times = [layer.measured_ms for layer in layers if layer.multiply_adds]
    assert len(times) >= 4
    assert all(time is not None and 0.0 < time < 1000.0 for time in times)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in networks() if n not in FAST and entry(n).weights is not None]
)
def test_every_exported_network_has_the_layers_of_the_network_in_torch(name: str) -> None:
    compare_with_torch(name)


@pytest.mark.parametrize(
    ("automatic", "padding", "height"), [("SAME_UPPER", (0, 1), 4), ("SAME_LOWER", (1, 0), 4)]
)
def test_padding_that_a_graph_leaves_to_the_runtime_is_worked_out(
    automatic: str, padding: tuple[int, int], height: int
) -> None:
    node = helper.make_node(
        "Conv", ["image", "weight"], ["out"], auto_pad=automatic, strides=[2, 2]
    )
    encoded = graph([node], [1, 3, 8, 8], weight=np.zeros((4, 3, 3, 3), np.float32))
    [layer] = layers_of(operations_of(encoded), "image")
    assert layer.padding is not None
    assert (layer.padding[0], layer.padding[2]) == padding
    assert layer.shape == (4, height, height)
    assert layer.formula == f"(8 - 3 + {padding[0]} + {padding[1]}) / 2 + 1 = 4"


def test_sizes_that_a_graph_leaves_open_are_asked_for() -> None:
    node = helper.make_node("Conv", ["image", "weight"], ["out"])
    encoded = graph([node], ["N", 3, "H", "W"], weight=np.zeros((4, 3, 3, 3), np.float32))
    with pytest.raises(
        PackageError, match=r"leaves the image's height and width open; give .*--inp"
    ):
        operations_of(encoded)
    assert operations_of(encoded, image_size=(10, 12))[0].shape == (1, 4, 8, 10)


def test_a_field_ends_where_a_graph_from_elsewhere_mixes_tokens() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["patches"], strides=[4, 4]),
        helper.make_node("Reshape", ["patches", "shape"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "mix"], ["mixed"]),
    ]
    encoded = graph(
        nodes,
        [1, 3, 8, 8],
        weight=np.zeros((5, 3, 4, 4), np.float32),
        shape=np.array([1, 5, 4], np.int64),
        mix=np.zeros((4, 4), np.float32),
    )
    first, last = layers_of(operations_of(encoded), "image")
    assert first.field is not None
    assert first.field.rows is not None
    assert first.field.rows.size == 4
    assert last.field is None


def test_a_quantised_graph_has_the_layers_of_the_network_behind_it() -> None:
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_q"]),
        helper.make_node("DequantizeLinear", ["image_q", "scale", "zero"], ["image_d"]),
        helper.make_node("DequantizeLinear", ["weight_q", "scale", "zero_w"], ["weight"]),
        helper.make_node("Conv", ["image_d", "weight"], ["out"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["out"], ["active"]),
    ]
    encoded = graph(
        nodes,
        [1, 3, 8, 8],
        scale=scale,
        zero=zero,
        zero_w=np.array(0, np.int8),
        weight_q=np.zeros((4, 3, 3, 3), np.int8),
    )
    convolution, relu = layers_of(operations_of(encoded), "image")
    assert (convolution.kind, convolution.window, convolution.shape) == (
        "convolution",
        "3x3 pad 1",
        (4, 8, 8),
    )
    assert convolution.multiply_adds == 4 * 64 * 27
    assert relu.inputs == (convolution.name,)
