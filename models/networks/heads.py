"""Heads: embedding, logits and class-activation maps (in closed form) from the feature map.

Grad-CAM weighs the feature maps by the mean over cells of the gradient of a class's logit
(Selvaraju et al. 2017, eq. 1 and 2). Every pooling here is an average, and the weights of an
average sum to 1. So the weighted sum at a cell is a derivative of the logit: in the direction of
that cell's features spread over all cells, divided by the number of cells. The derivative is taken
forwards: the feature map is pushed through the linear part of each layer. For all classes at once
that costs about one more pass of the head at each cell.

Letters used in shapes: N images, K classes, C channels of the feature map, D embedding features, J
hidden features, h and w cells of the feature map, G cells along each side of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.networks.options import ActivationName

LEAK = 0.01
"""Slope of leaky ReLU below 0. Source: Maas et al. 2013."""


class Activation(NamedTuple):
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


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of x * Phi(x): Phi(x) + x * phi(x), the normal distribution and its density."""
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * torch.exp(-0.5 * x * x) / math.sqrt(
        2.0 * math.pi
    )


ACTIVATIONS: Mapping[ActivationName, Activation] = {
    "relu": Activation(nn.ReLU, _relu_slope),
    "leaky_relu": Activation(lambda: nn.LeakyReLU(LEAK), _leaky_relu_slope),
    "elu": Activation(nn.ELU, _elu_slope),
    "gelu": Activation(nn.GELU, gelu_slope),
}


class Head(nn.Module):
    """Maps the feature map to an embedding, and that to logits and class-activation maps.

    A subclass has `linear`, the last layer, and says what comes before it.
    """

    linear: nn.Linear

    def __init__(self, embedding_size: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.dropout = nn.Dropout(dropout)

    def embed(self, features_NChw: Tensor) -> Tensor:
        """The embedding [N,D]. By default it is the mean over cells, so that D is C."""
        return features_NChw.mean(dim=(2, 3))

    def before_linear(self, embedding_ND: Tensor) -> Tensor:
        """What the last layer takes, before dropout."""
        return embedding_ND

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout(self.before_linear(embedding_ND)))
        return logits

    def push(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The features of each cell, pushed through everything before the last layer."""
        return features_NChw

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """Grad-CAM before its ReLU, for every class, [N,K,h,w].

        The gradient of a logit is the class's row of the last weight, so that the last step is a
        1x1 convolution with it.
        """
        direction_NJhw = self.push(embedding_ND, features_NChw)
        weight_KJ = _summed(self.linear.weight, direction_NJhw.shape[1])
        return pushed(direction_NJhw, weight_KJ) / features_NChw[0, 0].numel()


class LinearHead(Head):
    """Dropout and one linear layer, as ResNet, MobileNetV2, GoogLeNet, DenseNet and others have."""

    def __init__(self, embedding_size: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__(embedding_size, dropout=dropout)
        self.linear = nn.Linear(embedding_size, num_classes)


class HiddenHardswishHead(Head):
    """Linear, hard-swish, dropout, linear, as MobileNetV3 has."""

    def __init__(
        self, embedding_size: int, hidden_size: int, num_classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__(embedding_size, dropout=dropout)
        self.hidden = nn.Linear(embedding_size, hidden_size)
        self.linear = nn.Linear(hidden_size, num_classes)

    def before_linear(self, embedding_ND: Tensor) -> Tensor:
        """The hidden layer after its activation."""
        return F.hardswish(self.hidden(embedding_ND))

    def push(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The chain rule, applied to the feature map and not to each class.

        That costs K x J + J x D per cell, and not K x J x D.
        """
        slope_NJ = hardswish_slope(self.hidden(embedding_ND))
        return pushed(features_NChw, self.hidden.weight) * slope_NJ[:, :, None, None]


class LayerNormHead(Head):
    """Layer normalisation of the mean over cells and one linear layer, as ConvNeXt has."""

    def __init__(self, embedding_size: int, num_classes: int, *, eps: float = 1e-6) -> None:
        super().__init__(embedding_size)
        self.norm = nn.LayerNorm(embedding_size, eps=eps)
        self.linear = nn.Linear(embedding_size, num_classes)

    def before_linear(self, embedding_ND: Tensor) -> Tensor:
        """The normalised embedding."""
        normalised_ND: Tensor = self.norm(embedding_ND)
        return normalised_ND

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The normalisation's own weight is part of the last layer's here."""
        direction_NDhw = normalised_direction(embedding_ND, features_NChw, self.norm.eps)
        weight_KD = self.linear.weight * self.norm.weight
        return pushed(direction_NDhw, weight_KD) / features_NChw[0, 0].numel()


class DenseHead(Head):
    """Average pooling to G x G cells, hidden layers and a linear layer: LeNet-5, AlexNet, VGG.

    The embedding is the last hidden layer after its activation, which is what these networks are
    used for as features (Donahue et al. 2014, "DeCAF"). The pooled map would be too large: VGG's
    has 25,088 numbers. Without a hidden layer the embedding is the pooled map, flattened.
    """

    def __init__(
        self,
        hidden: Sequence[nn.Linear],
        linear: nn.Linear,
        *,
        grid: int,
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        dropout_first: bool = False,
    ) -> None:
        """*dropout* acts after each hidden layer, or with *dropout_first* before, as in AlexNet."""
        super().__init__(linear.in_features, dropout=0.0 if dropout_first else dropout)
        self.hidden = nn.ModuleList(hidden)
        self.linear = linear
        self.grid = grid
        self.activation = ACTIVATIONS[activation].make()
        self.slope = ACTIVATIONS[activation].slope
        self.dropout_before = nn.Dropout(dropout if dropout_first else 0.0)

    def embed(self, features_NChw: Tensor) -> Tensor:
        """What the last hidden layer gives, [N,D], before the dropout after it."""
        x_NJ = grid_mean(features_NChw, self.grid).flatten(1)
        for index, layer in enumerate(self.hidden):
            dropped_NJ = self.dropout_before(self.dropout(x_NJ) if index else x_NJ)
            x_NJ = self.activation(layer(dropped_NJ))
        return x_NJ

    def push(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The first layer acts on a feature with its weights summed over the grid.

        A feature spread over all cells is the same in every cell of the grid.
        """
        x_NJ, direction_NJhw = grid_mean(features_NChw, self.grid).flatten(1), features_NChw
        for layer in self.hidden:
            before_NJ = layer(x_NJ)
            weight_JJ = _summed(layer.get_parameter("weight"), direction_NJhw.shape[1])
            slope_NJ11 = self.slope(before_NJ)[:, :, None, None]
            direction_NJhw = pushed(direction_NJhw, weight_JJ) * slope_NJ11
            x_NJ = self.activation(before_NJ)
        return direction_NJhw


def normalised_direction(x_ND: Tensor, direction_NDhw: Tensor, eps: float) -> Tensor:
    """The derivative of x -> (x - mean) / deviation at *x_ND*, in the direction of every cell.

    It removes two parts of a direction: its mean, and what is along the normalised x.
    """
    deviation_N1 = (x_ND.var(dim=1, keepdim=True, correction=0) + eps).sqrt()
    normalised_ND11 = ((x_ND - x_ND.mean(dim=1, keepdim=True)) / deviation_N1)[:, :, None, None]
    along_N1hw = (direction_NDhw * normalised_ND11).mean(dim=1, keepdim=True)
    centred_NDhw = direction_NDhw - direction_NDhw.mean(dim=1, keepdim=True)
    return (centred_NDhw - normalised_ND11 * along_N1hw) / deviation_N1[:, :, None, None]


def grid_mean(features_NChw: Tensor, grid: int) -> Tensor:
    """`[N,C,G,G]`: torch's adaptive average pooling, for any h and w, also below G.

    ONNX has no adaptive pooling, so this is two products with constant matrices. h and w are fixed
    when a graph is exported.
    """
    height, width = features_NChw.shape[2:]
    if (height, width) == (grid, grid):
        return features_NChw
    rows_Gh = features_NChw.new_tensor(_windows(height, grid))
    columns_wG = features_NChw.new_tensor(_windows(width, grid)).T
    return rows_Gh @ features_NChw @ columns_wG


def _windows(length: int, grid: int) -> list[list[float]]:
    """Row i averages from floor(i * length / grid) to ceil((i + 1) * length / grid).

    Source: ATen `AdaptivePooling.h`.
    """
    spans = [(index * length // grid, -(-(index + 1) * length // grid)) for index in range(grid)]
    return [
        [1.0 / (stop - start) if start <= position < stop else 0.0 for position in range(length)]
        for start, stop in spans
    ]


def pushed(direction_NJhw: Tensor, weight_KJ: Tensor) -> Tensor:
    """Directions [N,J,h,w] through a linear layer of *weight_KJ*: [N,K,h,w]."""
    return F.conv2d(direction_NJhw, weight_KJ[:, :, None, None])


def _summed(weight: Tensor, channels: int) -> Tensor:
    """*weight* [K,J], summed over the grid if its layer takes a flattened grid of *channels*."""
    if weight.shape[1] == channels:
        return weight
    return weight.view(len(weight), channels, -1).sum(dim=2)


def dense_layers(sizes: Sequence[int]) -> list[nn.Linear]:
    """A linear layer between each two of *sizes*, with torch's initial weights."""
    return [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
