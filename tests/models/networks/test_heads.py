"""The heads: pooled as torch pools, and explained by what autograd would say.

Letters used in shapes: N images, K classes, C channels, D embedding features, h and w cells of the
feature map.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.networks.catalogue import build
from models.networks.heads import (
    ACTIVATIONS,
    DenseHead,
    HiddenHardswishHead,
    LayerNormHead,
    LinearHead,
    dense_layers,
    grid_mean,
    hardswish_slope,
)
from tests.models.grad_cam import grad_cam


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are what makes small batches slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dense(hidden, grid, activation="relu", *, dropout_first=False):
    sizes = [24 * grid**2, *hidden]
    linear = nn.Linear(sizes[-1], 6)
    return DenseHead(
        dense_layers(sizes),
        linear,
        grid=grid,
        activation=activation,
        dropout=0.5,
        dropout_first=dropout_first,
    )


HEADS = {
    "linear": lambda: LinearHead(24, 6, dropout=0.2),
    "hard-swish": lambda: HiddenHardswishHead(24, 40, 6, dropout=0.2),
    "layer norm": lambda: LayerNormHead(24, 6),
    "lenet5": lambda: dense([30], 7),
    "alexnet": lambda: dense([40, 24], 6, dropout_first=True),
    "vgg": lambda: dense([30, 40], 7),
    "flattened": lambda: dense([], 4),
    **{f"average, {name}": lambda name=name: dense([30], 1, name) for name in ACTIVATIONS},
    **{f"flattened, {name}": lambda name=name: dense([30], 4, name) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("cells", [(7, 7), (1, 1), (3, 5), (9, 8)])
@pytest.mark.parametrize("name", HEADS)
def test_class_activation_is_grad_cam(name, cells):
    torch.manual_seed(4)
    head = HEADS[name]().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    features_NChw = torch.randn(3, 24, *cells)
    expected = grad_cam(head, features_NChw)
    found = head.class_activation(head.embed(features_NChw), features_NChw)
    largest = float(expected.abs().max())
    # Layer normalisation does not see the length of what it is given: along the one and only cell
    # nothing changes.
    assert largest > 0.1 or (name == "layer norm" and cells == (1, 1))
    # float32 sums of some thousand products, relative to the largest.
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, largest), rtol=0.0)


@pytest.mark.parametrize(
    "name",
    [
        "lenet5",
        "alexnet",
        "convnext_tiny",
        "mobilenet_v3_small",
        "simple_cnn,pooling=flatten,activation=gelu",
    ],
)
def test_class_activation_of_a_whole_network_is_grad_cam(name):
    torch.manual_seed(0)
    network = build(name, num_classes=4).eval()
    with torch.no_grad():
        features_NChw, embedding_ND = network.embed(torch.randn(2, 3, 96, 96))
        found = network.head.class_activation(embedding_ND, features_NChw)
    expected = grad_cam(network.head, features_NChw)
    assert found.shape == (2, 4, *features_NChw.shape[2:])
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0.0)


@pytest.mark.parametrize("cells", [(7, 7), (14, 14), (10, 7), (2, 2), (1, 5), (13, 9)])
@pytest.mark.parametrize("grid", [4, 6, 7])
def test_the_grid_is_torchs_adaptive_pooling(cells, grid):
    features_NChw = torch.randn(2, 5, *cells, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        grid_mean(features_NChw, grid),
        F.adaptive_avg_pool2d(features_NChw, grid),
        atol=1e-6,
        rtol=0.0,
    )


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (nn.Hardswish(), hardswish_slope),
        *((activation.make(), activation.slope) for activation in ACTIVATIONS.values()),
    ],
)
def test_every_slope_is_autograds(function, slope):
    """At the kinks too, which lie on this grid."""
    x = torch.linspace(-5.0, 5.0, 1001, requires_grad=True)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(slope(x.detach()), expected, atol=1e-6, rtol=0.0)


def test_dropout_acts_in_training_alone_and_where_the_paper_has_it():
    features_NChw = torch.ones(1, 24, 6, 6)
    for first in (True, False):
        torch.manual_seed(0)
        head = dense([40], 6, dropout_first=first)
        pooled = [head.eval().embed(features_NChw), head.train().embed(features_NChw)]
        assert torch.equal(*pooled) != first
        logits = [head.eval()(pooled[0]), head.train()(pooled[0])]
        assert torch.equal(*logits) == first
