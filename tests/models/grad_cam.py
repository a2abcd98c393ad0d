"""Grad-CAM as its paper has it, by autograd: what the closed forms of the heads are held against.

Letters used in shapes: N images, K classes, C channels, h and w cells of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.networks.heads import DenseHead, Head, grid_mean
from models.networks.heads import _pushed as pushed
from models.networks.heads import _summed as summed
from models.networks.network import Network


def grad_cam(head: Head, features_NChw: Tensor) -> Tensor:
    """Grad-CAM before its ReLU, for every class, [N,K,h,w]: autograd, class by class.

    Source: Selvaraju et al. 2017, eq. 1 and 2.
    """
    features_NChw = features_NChw.clone().requires_grad_()
    logits_NK = head(head.embed(features_NChw))
    maps = []
    for k in range(logits_NK.shape[1]):
        (gradient_NChw,) = torch.autograd.grad(
            logits_NK[:, k].sum(), features_NChw, retain_graph=True
        )
        weight_NC11 = gradient_NChw.mean(dim=(2, 3), keepdim=True)
        maps.append((weight_NC11 * features_NChw).sum(dim=1))
    return torch.stack(maps, dim=1).detach()


KINK_ROUNDINGS = 3.0
"""A hidden unit is at its kink if it is within so many roundings of 0."""


@torch.no_grad()
def left_to_rounding(network: Network, images_N3HW: Tensor) -> Tensor:
    """How far each cell of the maps may move because rounding decides a slope, [N,K,h,w].

    A hidden ReLU whose input is within `KINK_ROUNDINGS` of 0 may have slope 0 or 1. A rounding is
    the largest difference that torch itself makes between a batch and single images. What such
    units add is summed without sign. Zero for heads without hidden ReLUs.
    """
    features_NChw, embedding_ND = network.embed(images_N3HW)
    head = network.head
    moved_NKhw = torch.zeros_like(head.class_activation(embedding_ND, features_NChw))
    if not isinstance(head, DenseHead):
        return moved_NKhw
    batch = _before_activations(head, features_NChw)
    single = [
        _before_activations(head, network.embed(image_3HW[None])[0]) for image_3HW in images_N3HW
    ]
    slopes = [head.slope(before_NJ) for before_NJ in batch]
    for layer, before_NJ in enumerate(batch):
        rounding = (before_NJ - torch.cat([one[layer] for one in single])).abs().max()
        for image, unit in (before_NJ.abs() < KINK_ROUNDINGS * rounding).nonzero().tolist():
            kept = [slope_NJ[image : image + 1] for slope_NJ in slopes]
            flipped = [slope_1J.clone() for slope_1J in kept]
            flipped[layer][0, unit] = 1.0 - flipped[layer][0, unit]
            feature_1Chw = features_NChw[image : image + 1]
            change_1Khw = _map(head, feature_1Chw, flipped) - _map(head, feature_1Chw, kept)
            moved_NKhw[image] += change_1Khw[0].abs()
    return moved_NKhw


def _before_activations(head: DenseHead, features_NChw: Tensor) -> list[Tensor]:
    x_NJ, found = grid_mean(features_NChw, head.grid).flatten(1), []
    for layer in head.hidden:
        found.append(layer(x_NJ))
        x_NJ = head.activation(found[-1])
    return found


def _map(head: DenseHead, features_NChw: Tensor, slopes: list[Tensor]) -> Tensor:
    """The maps of all classes with given slopes of the hidden units."""
    direction_NJhw = features_NChw
    for layer, slope_NJ in zip(head.hidden, slopes, strict=True):
        weight_JJ = summed(layer.weight, direction_NJhw.shape[1])
        direction_NJhw = pushed(direction_NJhw, weight_JJ) * slope_NJ[:, :, None, None]
    weight_KJ = summed(head.linear.weight, direction_NJhw.shape[1])
    return pushed(direction_NJhw, weight_KJ) / features_NChw[0, 0].numel()
