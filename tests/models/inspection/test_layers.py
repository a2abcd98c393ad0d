"""Layers of every network, compared with published figures, textbooks and a real forward pass."""

from __future__ import annotations

import pytest
import torch

from models.errors import BadRequest, UnknownLayer
from models.inspection.layers import Layer, layer_named, layers_of
from models.inspection.plan import check_plan, separable_saving, spatial_sizes
from models.networks.catalogue import build, entry, networks
from models.networks.torch_operations import IMAGE, operations_of_network

SMALL = (
    "lenet5",
    "simple_cnn",
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
)
PUBLISHED = [name for name in networks() if entry(name).weights is not None]


def layers(name: str, size: int | None = None, *, classes: int = 1000) -> list[Layer]:
    side = size or entry(name).usual_size
    with torch.device("meta"):
        network = build(name, num_classes=classes)
    return layers_of(operations_of_network(network, (side, side)), IMAGE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    found = layers(name)
    weights = entry(name).weights
    assert weights is not None
    # torchvision counts GoogLeNet's auxiliary heads, which we drop.
    if name != "googlenet":
        assert sum(layer.parameters for layer in found) == weights.meta["num_params"]
    # Published with three decimals of 10^9.
    assert round(sum(layer.multiply_adds for layer in found) / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("name", SMALL)
def test_shapes_are_those_of_a_real_forward_pass(name: str) -> None:
    check_forward_pass(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in networks() if name not in SMALL])
def test_shapes_of_every_network_are_those_of_a_real_forward_pass(name: str) -> None:
    check_forward_pass(name)


def check_forward_pass(name: str) -> None:
    side = 96 if entry(name).smallest_size > 16 else 64
    network = build(name, num_classes=5).eval()
    seen: list[tuple[int, ...]] = []

    def note(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(tuple(output.shape[1:]))

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.AvgPool2d)):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    told = [layer.shape for layer in layers(name, side, classes=5) if layer.kernel]
    assert len(seen) >= 2
    assert told == seen


def test_lenet_is_the_table_of_the_textbooks() -> None:
    found = [layer for layer in layers("lenet5", 28, classes=10) if "ReLU" not in layer.kind]
    assert [(layer.kind, layer.shape, layer.parameters) for layer in found] == [
        ("convolution", (20, 28, 28), 3 * 25 * 20 + 20),
        ("max pooling", (20, 14, 14), 0),
        ("convolution", (50, 14, 14), 20 * 25 * 50 + 50),
        ("max pooling", (50, 7, 7), 0),
        ("linear", (500,), 50 * 7 * 7 * 500 + 500),
        ("linear", (10,), 500 * 10 + 10),
    ]
    assert found[0].formula == "(28 - 5 + 2·2) / 1 + 1 = 28"
    assert found[1].formula == "(28 - 2 + 2·0) / 2 + 1 = 14"


def test_a_formula_says_how_it_rounds() -> None:
    by_name = {layer.name: layer for layer in layers("resnet18", 224)}
    assert by_name["features.conv1"].formula == "⌊(224 - 7 + 2·3) / 2⌋ + 1 = 112"
    pools = [layer for layer in layers("googlenet", 224) if layer.kind == "max pooling"]
    assert pools[0].formula == "⌈(112 - 3 + 2·0) / 2⌉ + 1 = 56"


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "none"])
@pytest.mark.parametrize("downsampling", ["max", "average", "strided"])
def test_every_choice_of_the_simple_network_has_its_layers(norm: str, downsampling: str) -> None:
    name = f"simple_cnn,norm={norm},downsampling={downsampling}"
    found = layers(name, 32, classes=3)
    assert [size for size, _ in spatial_sizes(found, 32)][:4] == [32, 16, 8, 4]
    assert all(layer.field is not None for layer in found)
    counted = sum(value.numel() for value in build(name, num_classes=3).parameters())
    assert sum(layer.parameters for layer in found) == counted


def test_a_depthwise_separable_pair_saves_what_the_paper_says() -> None:
    found = layers("mobilenet_v2")
    saving = separable_saving(found)
    assert saving.pairs == 17
    first = next(layer for layer in found if layer.kind == "depthwise convolution")
    second = found[found.index(first) + 3]
    share = (first.multiply_adds + second.multiply_adds) / (
        second.shape[0] * 9 * first.shape[0] * first.shape[1] * first.shape[2]
    )
    # MobileNets, section 3.1: 1/outputs + 1/kernel².
    assert share == pytest.approx(1 / second.shape[0] + 1 / 9)
    assert saving.standard / saving.separable == pytest.approx(7.66, abs=0.01)


def test_a_plan_that_holds_is_accepted() -> None:
    check_plan(layers("resnet18"), 224, [224, 112, 56, 28, 14, 7])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([256, 128], "begins with 256; the image has 224 pixels. Give --input 256"),
        (
            [224, 111],
            (
                r"size 2 of the plan is 111. features.conv1 \(convolution 7x7 /2 pad 3\) gives 112:"
                r" ⌊\(224 - 7 \+ 2·3\) / 2⌋ \+ 1 = 112."
                r" With padding 'same' it would give 112, with 'valid' 109"
            ),
        ),
        ([224, 112, 56, 28, 14, 7, 3], "the plan has 7 sizes; the network has 6: 224, 112"),
    ],
)
def test_a_plan_that_does_not_hold_names_the_layer(plan: list[int], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_plan(layers("resnet18"), 224, plan)


def test_a_layer_that_is_not_there_lists_those_that_are() -> None:
    found = layers("lenet5", 28)
    assert layer_named(found, "features.3").shape == (50, 14, 14)
    with pytest.raises(UnknownLayer, match=r"no layer 'conv9'. There are: features.0, relu_1"):
        layer_named(found, "conv9")
