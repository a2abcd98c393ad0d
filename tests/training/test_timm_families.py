"""A representative of each of timm's families: a training step, ONNX, and the same answers."""

import numpy as np
import pytest
import torch
from torch import nn

from models.networks.catalogue import build, entry
from models.networks.network import ServedGraph
from models.package.manifest import PreprocessSpec
from training.export.onnx_file import first_that_passes
from training.export.parity import PARITY_TOLERANCE
from training.export.runners import onnx_runner, torch_runner

FAMILIES = {
    "vit_tiny_patch16_224": 64,
    "convnext_atto": 64,
    "swin_tiny_patch4_window7_224": 224,
    "tf_efficientnet_lite0": 64,
    "mobilenetv4_conv_small": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "beit_base_patch16_224": 64,
    "mixer_s16_224": 224,
    "test_maxvit": 160,
    "resnet18": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "ghostnet_100": 64,
    "repvgg_a0": 64,
    "nfnet_l0": 64,
    "edgenext_xx_small": 64,
    "mobilevit_xxs": 128,
    "levit_128s": 224,
    "poolformer_s12": 64,
    "fastvit_t8": 128,
    "eva02_tiny_patch14_224": 56,
    "pvt_v2_b0": 64,
    "xcit_nano_12_p16_224": 64,
    "hiera_tiny_224": 224,
}
"""Name -> image size. Smaller than usual where the network takes that, so that a step is short."""
WITHOUT_MAPS = {
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "xcit_nano_12_p16_224",
}
"""They answer from a class token, which no average over cells makes."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_timm_learns_and_its_graph_gives_the_same(name):
    torch.manual_seed(0)
    size, inputs = FAMILIES[name], entry(f"timm:{name}").inputs()
    network = build(f"timm:{name}", num_classes=3, image_size=size)
    assert network.has_maps == (name not in WITHOUT_MAPS)
    before = network.head.linear.weight.detach().clone()
    one_step(network, size)
    assert not torch.equal(network.head.linear.weight, before)
    graph = ServedGraph(network.eval(), mean=inputs.mean, std=inputs.std, temperature=1.0)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = torch_runner(graph)(pixels_NHWC, graph.outputs)

    def check(encoded, exporter):
        run = onnx_runner(encoded, origin=exporter)
        # The batch is free in the graph: one image, and three.
        for count in (1, 3):
            found = run(pixels_NHWC[:count], graph.outputs)
            np.testing.assert_allclose(
                found["probabilities"], expected["probabilities"][:count], atol=PARITY_TOLERANCE
            )
            for output in set(graph.outputs) - {"probabilities"}:
                scale = float(np.abs(expected[output]).max())
                np.testing.assert_allclose(
                    found[output], expected[output][:count], atol=1e-3 * scale, err_msg=output
                )

    spec = PreprocessSpec(crop=(size, size), resize_size=size)
    _, exporter = first_that_passes(graph, spec, check)
    assert exporter


def one_step(network, size):
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(
        network(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 2, 0])
    )
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss)
