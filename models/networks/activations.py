"""Activation functions and their derivatives, which class-activation maps need in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.options import ActivationName

LEAK = 0.01
"""Slope of leaky ReLU below 0. Source: Maas et al. 2013."""


@dataclass(frozen=True)
class Activation:
    """A function of one number, and its slope with torch's choice at every kink."""

    make: Callable[[], nn.Module]
    slope: Callable[[Tensor], Tensor]


def hardswish_slope(x: Tensor) -> Tensor:
    """Derivative of hard-swish x * relu6(x + 3) / 6, which is 0 and 1 at the two kinks."""
    return torch.where(x <= -3.0, 0.0, torch.where(x >= 3.0, 1.0, (2.0 * x + 3.0) / 6.0))


def _relu_slope(x: Tensor) -> Tensor:
    return (x > 0.0).to(x.dtype)


def _leaky_relu_slope(x: Tensor) -> Tensor:
    return torch.where(x > 0.0, 1.0, LEAK)


def _elu_slope(x: Tensor) -> Tensor:
    return torch.exp(torch.clamp(x, max=0.0))


def _gelu_slope(x: Tensor) -> Tensor:
    """Of x * Phi(x): Phi(x) + x * phi(x), with the normal distribution and its density."""
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * torch.exp(-0.5 * x * x) / math.sqrt(
        2.0 * math.pi
    )


ACTIVATIONS: Mapping[ActivationName, Activation] = {
    "relu": Activation(nn.ReLU, _relu_slope),
    "leaky_relu": Activation(lambda: nn.LeakyReLU(LEAK), _leaky_relu_slope),
    "elu": Activation(nn.ELU, _elu_slope),
    "gelu": Activation(nn.GELU, _gelu_slope),
}
