"""int8 of networks that compute shapes and places in their graph, as the squeeze-and-excitation
of MobileNetV3 does.

Letters used in shapes: N images, H and W pixels.
"""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.package.manifest import PreprocessSpec
from training.export.int8.graph import Graph
from training.export.int8.pair_safe import with_safe_pairs
from training.export.int8.qdq import quantised
from training.export.int8.search import measurable
from training.export.int8.statistics import ranges, spreads
from training.export.onnx_file import to_onnx

SIDE = 224


@pytest.mark.slow
def test_mobilenet_v3_is_quantised_and_its_arithmetic_on_shapes_is_not():
    torch.manual_seed(0)
    network = build("mobilenet_v3_small", num_classes=3).eval()
    spec = PreprocessSpec(crop=(SIDE, SIDE))
    encoded = to_onnx(
        ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval(), spec
    )
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, size=(2, SIDE, SIDE, 3), dtype=np.uint8)
    graph = Graph.of(encoded)
    values = measurable(graph)
    assert {graph.floats()[value] for value in values} <= {2, 4}, (
        "batches of features and of maps, no shapes and no masks"
    )
    found = ranges(spreads(graph, values, lambda: [pixels_NHWC]), "min-max")
    small = with_safe_pairs(quantised(graph, found, pixels=None, in_float=()), graph)
    # A quarter for the weights; names, scales and the graph itself come on top.
    assert len(small) < 0.4 * len(encoded)
    before, after = (
        ort.InferenceSession(model).run(["logits"], {"image": pixels_NHWC})[0]
        for model in (encoded, small)
    )
    # Random weights give logits of 0.03; 8 bits moved them by 6e-5 here.
    np.testing.assert_allclose(after, before, atol=1e-3)
    assert np.abs(before).max() > 0.01
