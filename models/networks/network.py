"""A classifier as features and a head, and the graph that is exported from it.

Letters used in shapes: N images, K classes, C channels and h and w cells of the last feature map, D
embedding features, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.heads import Head

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OUTPUTS = ("logits", "probabilities", "embedding", "cam")


class Network(nn.Module):
    """Features and head. Takes normalised `float32 [N,3,H,W]`, gives logits [N,K]."""

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def embed(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map [N,C,h,w] and the embedding [N,D] that the head makes of it."""
        features_NChw: Tensor = self.features(images_N3HW)
        return features_NChw, self.head.embed(features_NChw)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.head(self.embed(images_N3HW)[1])
        return logits


class ServedGraph(nn.Module):
    """What is exported: `uint8 [N,H,W,3]` in, the tensors of `OUTPUTS` out."""

    def __init__(
        self, network: Network, *, mean: Sequence[float], std: Sequence[float], temperature: float
    ) -> None:
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
        features_NChw, embedding_ND = self.network.embed(normalised_N3HW)
        logits_NK = self.network.head(embedding_ND)
        probabilities_NK = torch.softmax(logits_NK / self.temperature, dim=1)
        return (
            logits_NK,
            probabilities_NK,
            embedding_ND,
            self.network.head.class_activation(embedding_ND, features_NChw),
        )
