"""A classifier as features and a head, and the graph that is exported from it.

Letters used in shapes: N images, K classes, D embedding features, J hidden features, H and W pixels, h and w cells of the last
feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OUTPUTS = ("logits", "probabilities", "embedding", "cam")


class Head(nn.Module):
    """Maps pooled features to logits, and the feature map to class-activation maps."""

    embedding_size: int

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        raise NotImplementedError

    def class_activation(self, embedding_ND: Tensor, features_NDhw: Tensor) -> Tensor:
        """Grad-CAM before its ReLU, for every class, [N,K,h,w], in closed form.

        Grad-CAM weighs the feature maps by the mean over cells of the gradient of the class's logit. Behind global average pooling
        that mean is the gradient with respect to the embedding, divided by the number of cells. Source: Selvaraju et al. 2017, eq. 1 and 2.
        """
        raise NotImplementedError


class LinearHead(Head):
    """Dropout and one linear layer, as ResNet and MobileNetV2 have."""

    def __init__(self, embedding_size: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embedding_size, num_classes)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout(embedding_ND))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NDhw: Tensor) -> Tensor:
        """The gradient of a logit is the class's row of the weight: a 1x1 convolution with the weight."""
        return F.conv2d(features_NDhw, self.linear.weight[:, :, None, None]) / features_NDhw[0, 0].numel()


class HiddenHardswishHead(Head):
    """Linear, hard-swish, dropout, linear, as MobileNetV3 has."""

    def __init__(self, embedding_size: int, hidden_size: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.hidden = nn.Linear(embedding_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.linear(self.dropout(F.hardswish(self.hidden(embedding_ND))))
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NDhw: Tensor) -> Tensor:
        """The chain rule through the hidden layer, applied to the feature map instead of to each class: K x J + J x D per cell, not K x J x D."""
        slope_NJ = _hardswish_slope(self.hidden(embedding_ND))
        hidden_NJhw = F.conv2d(features_NDhw, self.hidden.weight[:, :, None, None]) * slope_NJ[:, :, None, None]
        return F.conv2d(hidden_NJhw, self.linear.weight[:, :, None, None]) / features_NDhw[0, 0].numel()


class Network(nn.Module):
    """Features, global average pooling, head. Takes normalised `float32 [N,3,H,W]`, gives logits [N,K]."""

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def embed(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map [N,D,h,w] and its mean over cells, the embedding [N,D]."""
        features_NDhw: Tensor = self.features(images_N3HW)
        return features_NDhw, features_NDhw.mean(dim=(2, 3))

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.head(self.embed(images_N3HW)[1])
        return logits


class ServedGraph(nn.Module):
    """What is exported: `uint8 [N,H,W,3]` in; logits, probabilities, embedding and class-activation maps out."""

    def __init__(self, network: Network, *, mean: Sequence[float], std: Sequence[float], temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        # (x / 255 - mean) / std as one multiplication and one subtraction.
        self.register_buffer("scale", (1.0 / (255.0 * torch.tensor(std))).view(1, 3, 1, 1))
        self.register_buffer("shift", (torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1))
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of `OUTPUTS`."""
        normalised_N3HW = image.permute(0, 3, 1, 2).float() * self.scale - self.shift
        features_NDhw, embedding_ND = self.network.embed(normalised_N3HW)
        logits_NK = self.network.head(embedding_ND)
        probabilities_NK = torch.softmax(logits_NK / self.temperature, dim=1)
        return logits_NK, probabilities_NK, embedding_ND, self.network.head.class_activation(embedding_ND, features_NDhw)


def _hardswish_slope(x: Tensor) -> Tensor:
    """Derivative of hard-swish x * relu6(x + 3) / 6, with torch's choice of 0 and 1 at the two kinks."""
    return torch.where(x <= -3.0, 0.0, torch.where(x >= 3.0, 1.0, (2.0 * x + 3.0) / 6.0))
