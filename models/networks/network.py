"""A classifier as features and a head, and the graph that is exported from it.

Letters used in shapes: N images, K classes, C channels and h and w cells of the last feature map, D
embedding features, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.heads import Head
from models.networks.inputs import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "OUTPUTS", "Network", "ServedGraph"]

OUTPUTS = ("logits", "probabilities", "embedding", "cam")
"""What a graph can give. A network without maps has all but the last."""


class Network(nn.Module):
    """Features and head. Takes normalised `float32 [N,3,H,W]`, gives logits [N,K]."""

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    @property
    def has_maps(self) -> bool:
        """Whether class-activation maps can be had."""
        return True

    def embed(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map [N,C,h,w] and the embedding [N,D] that the head makes of it."""
        features_NChw: Tensor = self.features(images_N3HW)
        return features_NChw, self.head.embed(features_NChw)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits [N,K]."""
        logits: Tensor = self.head(self.embed(images_N3HW)[1])
        return logits

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """Grad-CAM before its ReLU, for every class, [N,K,h,w]; only with `has_maps`."""
        return self.head.class_activation(embedding_ND, features_NChw)


class ServedGraph(nn.Module):
    """What is exported: `uint8 [N,H,W,3]` in, the tensors of `outputs` out."""

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

    @property
    def outputs(self) -> tuple[str, ...]:
        """Those of `OUTPUTS` that the network can give, in order."""
        return OUTPUTS if self.network.has_maps else OUTPUTS[:-1]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """In the order of `outputs`."""
        normalised_N3HW = image.permute(0, 3, 1, 2).float() * self.scale - self.shift
        features_NChw, embedding_ND = self.network.embed(normalised_N3HW)
        logits_NK = self.network.head(embedding_ND)
        probabilities_NK = torch.softmax(logits_NK / self.temperature, dim=1)
        if not self.network.has_maps:
            return logits_NK, probabilities_NK, embedding_ND
        maps_NKhw = self.network.class_activation(embedding_ND, features_NChw)
        return logits_NK, probabilities_NK, embedding_ND, maps_NKhw
