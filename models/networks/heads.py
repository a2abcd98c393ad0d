"""Heads: what makes an embedding and logits of the feature map, and class-activation maps in closed
form.

Grad-CAM weighs the feature maps by the mean over cells of the gradient of a class's logit
(Selvaraju et al. 2017, eq. 1 and 2). Every pooling here is an average, and the weights of an
average sum to 1. So the weighted sum at a cell is the derivative of the logit in the direction of
that cell's features, spread over all cells, and divided by their number. That derivative is taken
forwards, by pushing the feature map through the linear part of each layer: for all classes at once
it costs about one more pass of the head at each cell.

Letters used in shapes: N images, K classes, C channels of the feature map, D embedding features, J
hidden features, h and w cells of the feature map, G cells along each side of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.networks.activations import ACTIVATIONS, hardswish_slope
from models.networks.options import ActivationName


class Head(nn.Module):
    """Maps the feature map to an embedding, that to logits, and the feature map to class-activation
    maps.
    """

    embedding_size: int

    def embed(self, features_NChw: Tensor) -> Tensor:
        """The embedding [N,D]: the mean over cells, so that D is C, unless a head says otherwise."""
        return features_NChw.mean(dim=(2, 3))

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        raise NotImplementedError

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """Grad-CAM before its ReLU, for every class, [N,K,h,w]."""
        raise NotImplementedError


class LinearHead(Head):
    """Dropout and one linear layer, as ResNet, MobileNetV2, GoogLeNet, DenseNet and EfficientNet
    have.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embedding_size, num_classes)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout(embedding_ND))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The gradient of a logit is the class's row of the weight: a 1x1 convolution with the
        weight.
        """
        return _pushed(features_NChw, self.linear.weight) / _cells(features_NChw)


class HiddenHardswishHead(Head):
    """Linear, hard-swish, dropout, linear, as MobileNetV3 has."""

    def __init__(
        self, embedding_size: int, hidden_size: int, num_classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.hidden = nn.Linear(embedding_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout(F.hardswish(self.hidden(embedding_ND))))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The chain rule through the hidden layer, applied to the feature map instead of to each
        class: K x J + J x D per cell, not K x J x D.
        """
        slope_NJ = hardswish_slope(self.hidden(embedding_ND))
        hidden_NJhw = _pushed(features_NChw, self.hidden.weight) * slope_NJ[:, :, None, None]
        return _pushed(hidden_NJhw, self.linear.weight) / _cells(features_NChw)


class LayerNormHead(Head):
    """Layer normalisation of the mean over cells and one linear layer, as ConvNeXt has."""

    def __init__(self, embedding_size: int, num_classes: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.norm = nn.LayerNorm(embedding_size, eps=eps)
        self.linear = nn.Linear(embedding_size, num_classes)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.norm(embedding_ND))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """The derivative of x -> (x - mean) / deviation takes the mean, and the part along the
        normalised x, out of a direction.
        """
        deviation_N1 = (embedding_ND.var(dim=1, keepdim=True, correction=0) + self.norm.eps).sqrt()
        normalised_ND11 = ((embedding_ND - embedding_ND.mean(dim=1, keepdim=True)) / deviation_N1)[
            :, :, None, None
        ]
        along_N1hw = (features_NChw * normalised_ND11).mean(dim=1, keepdim=True)
        centred_NDhw = features_NChw - features_NChw.mean(dim=1, keepdim=True)
        direction_NDhw = (centred_NDhw - normalised_ND11 * along_N1hw) / deviation_N1[
            :, :, None, None
        ]
        return _pushed(direction_NDhw, self.linear.weight * self.norm.weight) / _cells(
            features_NChw
        )


class DenseHead(Head):
    """Average pooling to G x G cells, flattened, hidden layers each with its activation, and a
    linear layer: LeNet-5, AlexNet, VGG.

    The embedding is what the last hidden layer gives after its activation, as these networks have
    always been used for features (Donahue et al. 2014, "DeCAF"), and not the pooled map: VGG's has
    25,088 numbers. Without a hidden layer it is the pooled map, flattened.
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
        """*dropout* acts on what each hidden layer gives, or with *dropout_first* on what it gets,
        as in AlexNet.
        """
        super().__init__()
        self.hidden = nn.ModuleList(hidden)
        self.linear = linear
        self.embedding_size = linear.in_features
        self.grid = grid
        self.activation = ACTIVATIONS[activation].make()
        self.slope = ACTIVATIONS[activation].slope
        self.dropout_before = nn.Dropout(dropout if dropout_first else 0.0)
        self.dropout_after = nn.Dropout(0.0 if dropout_first else dropout)

    def embed(self, features_NChw: Tensor) -> Tensor:
        """What the last hidden layer gives, [N,D], before the dropout behind it."""
        x_NJ = grid_mean(features_NChw, self.grid).flatten(1)
        for index, layer in enumerate(self.hidden):
            x_NJ = self.activation(
                layer(self.dropout_before(self.dropout_after(x_NJ) if index else x_NJ))
            )
        return x_NJ

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout_after(embedding_ND))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """Features spread over all cells give the first layer the same in every cell of its grid:
        its weights summed over the grid act on them.
        """
        x_NJ, direction_NJhw = grid_mean(features_NChw, self.grid).flatten(1), features_NChw
        for layer in self.hidden:
            before_NJ = layer(x_NJ)
            weight_JJ = _summed(layer.get_parameter("weight"), direction_NJhw.shape[1])
            direction_NJhw = (
                _pushed(direction_NJhw, weight_JJ) * self.slope(before_NJ)[:, :, None, None]
            )
            x_NJ = self.activation(before_NJ)
        return _pushed(
            direction_NJhw, _summed(self.linear.weight, direction_NJhw.shape[1])
        ) / _cells(features_NChw)


def grid_mean(features_NChw: Tensor, grid: int) -> Tensor:
    """`[N,C,G,G]`: means over windows as torch's adaptive pooling has them, for any h and w, fewer
    than G among them.

    Two products with constant matrices, because ONNX has no adaptive pooling; h and w are fixed
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


def _pushed(direction_NJhw: Tensor, weight_KJ: Tensor) -> Tensor:
    return F.conv2d(direction_NJhw, weight_KJ[:, :, None, None])


def _summed(weight: Tensor, channels: int) -> Tensor:
    """The weight of a layer behind a flattened grid, summed over the grid; of any other layer as it
    is.
    """
    if weight.shape[1] == channels:
        return weight
    return weight.view(len(weight), channels, -1).sum(dim=2)


def _cells(features_NChw: Tensor) -> int:
    return features_NChw[0, 0].numel()


def dense_layers(sizes: Sequence[int]) -> list[nn.Linear]:
    """A linear layer between each two of *sizes*, with torch's initial weights."""
    return [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
