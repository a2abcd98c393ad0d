"""Every network of the catalogue is built, learns in all its parts and takes torchvision's names.

What needs no numbers is asked on torch's `meta` device, where a VGG costs nothing.
"""

import pytest
import torch
import torchvision.models as zoo
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torchvision.ops import StochasticDepth

from models.errors import ConfigError
from models.networks.catalogue import build, entry, networks
from models.networks.weights import _renamed

SHAPES = {
    "resnet18": (512, 512, 2),
    "resnet34": (512, 512, 2),
    "resnet50": (2048, 2048, 2),
    "resnet101": (2048, 2048, 2),
    "resnet152": (2048, 2048, 2),
    "mobilenet_v2": (1280, 1280, 2),
    "mobilenet_v3_small": (576, 576, 2),
    "mobilenet_v3_large": (960, 960, 2),
    "lenet5": (500, 50, 16),
    "alexnet": (4096, 256, 1),
    **dict.fromkeys(
        ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
        (4096, 512, 2),
    ),
    "googlenet": (1024, 1024, 2),
    "densenet121": (1024, 1024, 2),
    "densenet169": (1664, 1664, 2),
    "densenet201": (1920, 1920, 2),
    "efficientnet_b0": (1280, 1280, 2),
    "efficientnet_b1": (1280, 1280, 2),
    "efficientnet_b2": (1408, 1408, 2),
    "efficientnet_b3": (1536, 1536, 2),
    "convnext_tiny": (768, 768, 2),
    "convnext_small": (768, 768, 2),
    "simple_cnn": (128, 128, 8),
}
"""Embedding features, channels and cells a side of the last feature map, for 64 x 64 pixels."""
OF_TORCHVISION = [name for name in networks() if entry(name).weights is not None]
REPRESENTATIVES = [
    "resnet18",
    "mobilenet_v3_small",
    "lenet5",
    "googlenet",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "simple_cnn",
]
SMALLEST = {
    "alexnet": 63,
    "vgg11": 32,
    "vgg19_bn": 32,
    "densenet121": 29,
    "densenet201": 29,
    "convnext_tiny": 32,
    "lenet5": 16,
    "resnet152": 16,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are what makes small batches slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_catalogue_is_what_these_tests_know():
    assert networks() == tuple(SHAPES)
    assert len(OF_TORCHVISION) == len(networks()) - 2


@pytest.mark.parametrize("name", networks())
def test_every_network_is_built_for_the_classes_asked_for(name):
    embedding_size, channels, cells = SHAPES[name]
    with torch.device("meta"):
        network = build(name, num_classes=3, image_size=64).eval()
        features_NChw, embedding_ND = network.embed(torch.zeros(2, 3, 64, 64))
        cam_NKhw = network.head.class_activation(embedding_ND, features_NChw)
        logits_NK = network(torch.zeros(2, 3, 64, 64))
    assert network.head.embedding_size == embedding_size
    assert embedding_ND.shape == (2, embedding_size)
    assert features_NChw.shape == (2, channels, cells, cells)
    assert cam_NKhw.shape == (2, 3, cells, cells)
    assert logits_NK.shape == (2, 3)


@pytest.mark.parametrize("name", networks())
def test_every_parameter_is_of_the_features_or_of_the_head(name):
    """So that features can be frozen, and a head exchanged, by these two names."""
    with torch.device("meta"):
        names = [key for key, _ in build(name, num_classes=3).named_parameters()]
    assert {key.split(".")[0] for key in names} == {"features", "head"}
    assert {"head.linear.weight", "head.linear.bias"} < set(names)


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_torchvisions_names_and_shapes_are_ours_once_renamed(name):
    """For all of them, on `meta`; that the numbers then come out the same,
    tests/models/networks/test_catalogue.py shows.
    """
    with torch.device("meta"):
        theirs = reference_module(name).state_dict()
        ours = build(name, num_classes=5).state_dict()
    found = _renamed(theirs, entry(name))
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in ours.items()
    }


def reference_module(name):
    # Both auxiliary classifiers, as the published weights have them.
    extra = {"init_weights": True} if name == "googlenet" else {}
    return getattr(zoo, name)(num_classes=5, **extra)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.slow)
        for name in networks()
    ],
)
def test_a_gradient_reaches_every_weight(name):
    torch.manual_seed(0)
    network = build(name, num_classes=3).train()
    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # it may leave a block out for all four images
    images_N3HW = torch.randn(4, 3, 64, 64)
    F.cross_entropy(network(images_N3HW), torch.tensor([0, 1, 2, 0])).backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    unreached = [
        key
        for key, gradient in gradients.items()
        if gradient is None or not bool(gradient.isfinite().all())
    ]
    assert unreached == []
    # A bias before batch normalisation has none but rounding.
    still = [
        key
        for key, gradient in gradients.items()
        if gradient.ndim >= 2 and not bool(gradient.any())
    ]
    assert still == []


def test_lenet5_has_the_layers_of_the_table():
    """At 28x28: 20 filters to 28x28, 50 to 14x14, 500 units on 7x7 of them.

    Three channels where the table has one.
    """
    network = build("lenet5", num_classes=10)
    first, second = network.features[0], network.features[3]
    assert (first.out_channels, first.kernel_size, first.padding) == (20, (5, 5), (2, 2))
    assert (second.out_channels, second.kernel_size, second.padding) == (50, (5, 5), (2, 2))
    features_NChw, _ = network.embed(torch.zeros(1, 3, 28, 28))
    assert features_NChw.shape == (1, 50, 7, 7)
    expected = 20 * (3 * 25 + 1) + 50 * (20 * 25 + 1) + 500 * (50 * 49 + 1) + 10 * (500 + 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 1_257_080


def test_a_grey_image_is_to_lenet5_what_one_channel_would_be():
    """Three equal channels and weights are one channel with the sum of them."""
    network = build("lenet5", num_classes=10)
    grey_N1HW = torch.rand(2, 1, 28, 28)
    convolution = network.features[0]
    expected = F.conv2d(
        grey_N1HW, convolution.weight.sum(dim=1, keepdim=True), convolution.bias, padding=2
    )
    torch.testing.assert_close(
        convolution(grey_N1HW.expand(2, 3, 28, 28)), expected, atol=1e-5, rtol=0.0
    )


@pytest.mark.parametrize(("name", "smallest"), SMALLEST.items())
def test_an_image_too_small_is_answered_with_the_smallest(name, smallest):
    with pytest.raises(
        ConfigError,
        match=(
            rf"^image_size is {smallest - 1}; network {name} takes images of {smallest} pixels a"
            r" side or more$"
        ),
    ):
        build(name, num_classes=2, image_size=smallest - 1)
    with torch.device("meta"):
        network = build(name, num_classes=2, image_size=smallest).train()
        assert network(torch.zeros(2, 3, smallest, smallest)).shape == (2, 2)
        if smallest > 16:
            with pytest.raises((RuntimeError, ValueError)):
                network(torch.zeros(2, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_default_weights_are_trained_with_the_normalisation_that_the_graph_has(name):
    transform = entry(name).weights.transforms()
    assert (transform.mean, transform.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_googlenets_own_normalisation_is_from_minus_one_to_one():
    first = build("googlenet", num_classes=2).features[0]
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    pixels_N3HW = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    torch.testing.assert_close(
        first((pixels_N3HW - mean) / std), 2.0 * pixels_N3HW - 1.0, atol=1e-6, rtol=0.0
    )


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError,
        match=(
            r"^unknown network 'mobilenetv2'\. Did you mean mobilenet_v2.*\? `loupe networks` lists"
            r" them all; timm:NAME is one of timm's, and my_package\.nets:Net one of your own$"
        ),
    ):
        build("mobilenetv2", num_classes=2)
    with pytest.raises(ConfigError, match=r"^unknown network 'lenet'\. Did you mean lenet5.*\? "):
        build("lenet", num_classes=2)
