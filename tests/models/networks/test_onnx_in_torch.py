"""ONNX graphs in torch: the values of ONNX Runtime, and true gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.errors import PackageError
from models.networks.catalogue import build, entry, networks
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, OUTPUTS, ServedGraph
from models.networks.onnx_in_torch import OnnxNetwork
from models.package.manifest import PreprocessSpec
from training.export.onnx_file import to_onnx


def exported(name: str, side: int) -> bytes:
    torch.manual_seed(0)
    network = build(name, num_classes=5).eval()
    served = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.3)
    return to_onnx(served, PreprocessSpec(crop=(side, side)))


def check(name: str, side: int) -> None:
    encoded = exported(name, side)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    session = ort.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    expected = session.run(list(OUTPUTS), {"image": pixels_NHWC})
    photo = torch.from_numpy(pixels_NHWC).float().requires_grad_()
    found = OnnxNetwork(encoded, OUTPUTS)(photo)
    for output, ours, theirs in zip(OUTPUTS, found, expected, strict=True):
        reach = max(1.0, float(np.abs(theirs).max()))
        # Both in float32, summed in another order.
        assert np.abs(ours.detach().numpy() - theirs).max() < 1e-4 * reach, output
    [gradient] = torch.autograd.grad(found[0][:, 0].sum(), photo)
    assert gradient.abs().sum() > 0.0


def test_a_graph_gives_the_values_of_onnx_runtime() -> None:
    check("lenet5", 28)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in networks() if entry(n).weights is not None])
def test_the_graph_of_every_network_gives_the_values_of_onnx_runtime(name: str) -> None:
    check(name, 96)


def graph(nodes: Sequence[NodeProto], **weights: NDArray[np.generic]) -> bytes:
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, 7, 7])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    encoded: bytes = model.SerializeToString()
    return encoded


WEIGHT = np.random.default_rng(3).normal(size=(4, 2, 3, 3)).astype(np.float32)
FOREIGN = {
    "padding that differs by side": (
        helper.make_node("Conv", ["image", "w"], ["out"], pads=[0, 1, 2, 3], strides=[2, 1]),
        {"w": WEIGHT},
    ),
    "padding left to the runtime": (
        helper.make_node("Conv", ["image", "w"], ["out"], auto_pad="SAME_LOWER", strides=[2, 2]),
        {"w": WEIGHT},
    ),
    "max pooling padded below": (
        helper.make_node(
            "MaxPool", ["image"], ["out"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2]
        ),
        {},
    ),
    "average pooling rounded up": (
        helper.make_node(
            "AveragePool", ["image"], ["out"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
        ),
        {},
    ),
    "a hard sigmoid of other slope": (
        helper.make_node("HardSigmoid", ["image"], ["out"], alpha=0.3, beta=0.4),
        {},
    ),
    "channels taken by index": (
        helper.make_node("Gather", ["image", "i"], ["out"], axis=1),
        {"i": np.array([1, 0, 1], np.int64)},
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_operations_of_graphs_from_elsewhere_are_those_of_onnx_runtime(case: str) -> None:
    node, weights = FOREIGN[case]
    encoded = graph([node], **weights)
    image = np.random.default_rng(4).normal(size=(1, 2, 7, 7)).astype(np.float32)
    [expected] = ort.InferenceSession(encoded).run(None, {"image": image})
    [found] = OnnxNetwork(encoded, ["out"])(torch.from_numpy(image))
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_a_quantised_graph_rounds_and_passes_the_gradient() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["out"]),
    ]
    encoded = graph(nodes, s=np.array(0.1, np.float32), z=np.array(128, np.uint8))
    image = np.random.default_rng(5).normal(size=(1, 2, 7, 7)).astype(np.float32)
    [expected] = ort.InferenceSession(encoded).run(None, {"image": image})
    given = torch.from_numpy(image).requires_grad_()
    [found] = OnnxNetwork(encoded, ["out"])(given)
    assert np.allclose(found.detach().numpy(), expected, atol=1e-6)
    [gradient] = torch.autograd.grad(found.sum(), given)
    assert torch.allclose(gradient, torch.ones_like(gradient))


def test_a_guided_relu_passes_back_only_what_is_positive() -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["active"]),
        helper.make_node("Mul", ["active", "sign"], ["out"]),
    ]
    sign = np.array([1.0, -1.0], np.float32).reshape(1, 2, 1, 1)
    image = torch.ones(1, 2, 7, 7).requires_grad_()
    [out] = OnnxNetwork(graph(nodes, sign=sign), ["out"], guided=True)(image)
    [gradient] = torch.autograd.grad(out.sum(), image)
    assert gradient[0, 0].eq(1.0).all()
    assert gradient[0, 1].eq(0.0).all()


def test_an_operation_without_a_gradient_is_named() -> None:
    node = helper.make_node("NonZero", ["image"], ["out"])
    with pytest.raises(PackageError, match="gradients cannot be taken through NonZero"):
        OnnxNetwork(graph([node]), ["out"])
