"""Grad-CAM as its paper has it, by autograd: what the closed forms of the heads are held against.

Letters used in shapes: N images, K classes, C channels, h and w cells of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.networks.heads import Head


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
