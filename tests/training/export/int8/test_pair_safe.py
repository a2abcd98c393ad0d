"""Weights that no kernel saturates with: the rule, its cost, and the proof by the kernels of this
machine.

Letters used in shapes: N images, K output channels, C input channels, h and w cells of the kernel.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from models.machine import cpu_class
from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.package.manifest import PreprocessSpec
from training.export.int8.graph import Graph, is_depthwise
from training.export.int8.pair_safe import PAIR_MAX, largest_pair, with_safe_pairs
from training.export.int8.qdq import quantised
from training.export.int8.search import SATURATING, measurable
from training.export.int8.statistics import ranges, spreads
from training.export.onnx_file import to_onnx

SIDE = 64


def test_neighbours_of_one_sign_are_added():
    levels_KC = np.array([[100, 20, 30, -90], [-5, -60, 70, 0], [1, 2, 3, 4]], np.float32)
    assert largest_pair(levels_KC).tolist() == [120.0, 70.0, 7.0]
    # Of an odd number the last has no neighbour.
    assert largest_pair(levels_KC[:, :3]).tolist() == [120.0, 70.0, 3.0]


def test_a_spatial_kernel_is_read_cell_by_cell():
    weight_KChw = np.zeros((1, 2, 1, 2), np.float32)
    weight_KChw[0, :, 0, 0] = 10, 20
    weight_KChw[0, :, 0, 1] = 40, 1
    assert largest_pair(weight_KChw).tolist() == [41.0]


@pytest.fixture(scope="module", params=["mobilenet_v2", "resnet18"])
def made(request):
    """The float graph, its int8 with signed weights, the same with safe pairs, and pixels."""
    torch.manual_seed(0)
    network = build(request.param, num_classes=3).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            # Of like size and one sign: the worst case, in which every pair is twice a weight.
            torch.nn.init.uniform_(parameter, 0.9, 1.0)
            parameter.data /= parameter[0].numel()
    spec = PreprocessSpec(resize_size=SIDE, crop=(SIDE, SIDE))
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    encoded = to_onnx(graph, spec, "torch.onnx legacy")
    # Bright, so that activations fill their range.
    pixels_NHWC = np.random.default_rng(0).integers(
        128, 256, size=(2, SIDE, SIDE, 3), dtype=np.uint8
    )
    graph = Graph.of(encoded)
    found = ranges(spreads(graph, measurable(graph), lambda: [pixels_NHWC]), "min-max")
    signed = quantised(graph, found, pixels=None, in_float=())
    return graph, signed, with_safe_pairs(signed, graph), pixels_NHWC


def stored(encoded, graph, node):
    """Levels of the weight of *node* in the int8 model *encoded*, output channels first, and their
    scales.
    """
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.ModelProto.FromString(encoded).graph.initializer
    }
    name = node.input[1]
    return (
        constants[f"{name}_quantized"],
        constants[f"{name}_scale"],
        constants.get(f"{node.input[2]}_quantized_scale"),
    )


def test_no_pair_overflows_and_depthwise_weights_keep_eight_bits(made):
    graph, signed, paired, _ = made
    convolutions = [node for node in graph.needed_for("logits") if node.op_type == "Conv"]
    assert len(convolutions) >= 20
    for node in convolutions:
        weight = graph.weight(node)
        before, after = stored(signed, graph, node), stored(paired, graph, node)
        assert after[0].dtype == np.int8
        if is_depthwise(node, weight):
            np.testing.assert_array_equal(before[0], after[0])
            continue
        assert largest_pair(after[0].astype(np.float32)).max() <= PAIR_MAX
        assert largest_pair(before[0].astype(np.float32)).max() > PAIR_MAX
        # Half a level, as of any rounded number: what they stand for is the same weight.
        scale = after[1].reshape(-1, 1, 1, 1)
        assert np.abs(after[0] * scale - weight).max() <= 0.501 * scale.max()
        np.testing.assert_allclose(after[2] / before[2], after[1] / before[1], rtol=1e-5)


def logits(encoded, pixels_NHWC):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(encoded, options, providers=["CPUExecutionProvider"]).run(
        ["logits"], {"image": pixels_NHWC}
    )[0]


def with_unsigned_weights(encoded):
    """*encoded* with its int8 weights as uint8 around 128: the same numbers."""
    model = onnx.ModelProto.FromString(encoded)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.data_type != TensorProto.INT8:
            continue
        for tensor in (stored, constants[node.input[2]]):
            raised = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(raised.astype(np.uint8), tensor.name))
    return model.SerializeToString()


def test_no_kernel_of_this_machine_saturates(made):
    """The kernel for unsigned weights adds in 32 bits everywhere: the same numbers must give the
    same sums to the last bit.
    """
    _, _, paired, pixels_NHWC = made
    np.testing.assert_array_equal(
        logits(paired, pixels_NHWC), logits(with_unsigned_weights(paired), pixels_NHWC)
    )


@pytest.mark.skipif(
    cpu_class() not in SATURATING, reason="kernels of this CPU class do not saturate"
)
def test_with_all_eight_bits_kernels_without_vnni_do_saturate(made):
    _, signed, _, pixels_NHWC = made
    assert (
        np.abs(
            logits(signed, pixels_NHWC) - logits(with_unsigned_weights(signed), pixels_NHWC)
        ).max()
        > 0.0
    )
