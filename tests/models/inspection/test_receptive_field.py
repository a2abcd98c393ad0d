"""Receptive fields, compared with the pixels that have a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.inspection.field_rules import receptive_fields
from models.inspection.operations import Operation
from models.inspection.receptive_field import Axis
from models.networks.catalogue import build, entry, networks
from models.networks.torch_operations import IMAGE, operations_of_network
from models.networks.vision import SqueezeExcitation

FAST = ("lenet5", "simple_cnn", "mobilenet_v3_small", "googlenet")
ACTIVATIONS = (nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LayerNorm)


class Constant(nn.Module):
    """A gate whose dependence on the image is cut."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, map_NChw: Tensor) -> Tensor:
        gate: Tensor = self.pooling(map_NChw).detach()
        return gate


def without_zero_gradients(module: nn.Module) -> None:
    """Replace what passes no gradient to some pixels, and keep every window."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            assert isinstance(child.padding, int)
            pooling = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
            setattr(module, name, pooling)
        elif isinstance(child, ACTIVATIONS):
            setattr(module, name, nn.Identity())
        elif isinstance(child, SqueezeExcitation):
            # Its gate sees the whole image, which the list tells apart.
            child.avgpool = Constant(child.avgpool)
        else:
            without_zero_gradients(child)


def check(name: str, width: int) -> None:
    torch.manual_seed(0)
    network = build(name, num_classes=5).double().eval()
    for value in network.parameters():
        # All positive: no two ways through the network cancel.
        value.data = value.data.abs() + 1e-3
    without_zero_gradients(network.features)
    height = 100
    with torch.device("meta"):
        operations = operations_of_network(build(name, num_classes=5), (height, width))
    fields = receptive_fields(operations, IMAGE, channels_last=False)
    image = torch.rand(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    map_NChw = network.features(image)
    row, column = map_NChw.shape[2] // 2, map_NChw.shape[3] // 2
    map_NChw[0, :, row, column].sum().backward()
    assert image.grad is not None
    seen = torch.nonzero(image.grad[0].abs().sum(dim=(0, 1))).ravel()
    last = next(item for item in reversed(operations) if item.shape == tuple(map_NChw.shape))
    field = fields[last.output]
    assert field is not None
    region = field.region(row, column)
    assert region is not None
    assert (region[0], region[2]) == (int(seen[0]), int(seen[-1]) + 1)


@pytest.mark.parametrize("name", FAST)
def test_a_field_holds_exactly_the_pixels_that_have_a_gradient(name: str) -> None:
    check(name, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in networks() if name not in FAST])
def test_a_field_holds_exactly_the_pixels_that_have_a_gradient_in_every_network(name: str) -> None:
    check(name, 1000 if entry(name).weights is None or name.startswith("vgg") else 4700)


def test_branches_of_different_reach_are_joined() -> None:
    """A skip connection keeps the larger field of both ways."""
    wide = Axis(7.0, 2.0, 0.5)
    narrow = Axis(1.0, 2.0, 1.5)
    assert wide.joined(narrow) == wide
    assert Axis(3.0, 1.0, 0.5).joined(Axis(3.0, 1.0, 4.5)) == Axis(7.0, 1.0, 2.5)


def test_dilation_widens_a_field() -> None:
    assert Axis(1.0, 1.0, 0.5).windowed(3, 1, 2, 2) == Axis(5.0, 1.0, 0.5)


def test_an_operation_without_a_window_has_no_field() -> None:
    attention = Operation(
        kind="Attention",
        name="attention",
        inputs=(IMAGE,),
        output="mixed",
        input_shapes=((1, 3, 8, 8),),
        shape=(1, 3, 8, 8),
    )
    assert receptive_fields([attention], IMAGE, channels_last=False)["mixed"] is None


def test_a_gate_leaves_the_field_and_says_so() -> None:
    with torch.device("meta"):
        operations = operations_of_network(build("mobilenet_v3_small", num_classes=5), (224, 224))
    fields = receptive_fields(operations, IMAGE, channels_last=False)
    gate = next(item for item in operations if item.kind == "Mul")
    field = fields[gate.output]
    assert field is not None
    assert field.global_context
    assert field.rows is not None
    assert field.rows.size == 7
