"""Gradients of a network's values with respect to the pixels of a photo.

Letters used in shapes: H and W pixels, C channels, h and w cells of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.networks.onnx_in_torch import OnnxNetwork

LOGITS = "logits"
IG_STEPS = 32
"""Images between the blurred photo and the photo."""
IG_BATCH = 8
MASS = 0.95
"""Share of the gradient that the effective receptive field holds."""


@dataclass(frozen=True, kw_only=True)
class EffectiveField:
    """How strongly the pixels around one cell move it. Source: Luo et al. 2016."""

    gradient_HW: NDArray[np.float32]
    """Mean over channels of the absolute gradient, divided by its largest value."""
    row: int
    column: int
    """The cell."""
    side_px: int
    """Side of the square around the strongest place that holds `MASS` of the gradient."""


def integrated_gradients(
    network: OnnxNetwork,
    pixels_HWC: NDArray[np.uint8],
    baseline_HWC: NDArray[np.uint8],
    index: int,
) -> NDArray[np.float32]:
    """How much each pixel moved the logit of class *index* on the way from *baseline_HWC*, [H,W].

    *network* gives `logits`. The sum over pixels is the logit's difference between the two images,
    up to the error of the sum of `IG_STEPS` steps. Source: Sundararajan, Taly and Yan 2017, eq. 3,
    by the midpoint rule.
    """
    photo, baseline = _floats(pixels_HWC), _floats(baseline_HWC)
    total_HWC = torch.zeros_like(photo)
    shares = (torch.arange(IG_STEPS) + 0.5) / IG_STEPS
    for part in torch.split(shares, IG_BATCH):
        images_NHWC = baseline + part[:, None, None, None] * (photo - baseline)
        images_NHWC.requires_grad_()
        [logits_NK] = network(images_NHWC)
        [gradient_NHWC] = torch.autograd.grad(logits_NK[:, index].sum(), images_NHWC)
        total_HWC += gradient_NHWC.sum(dim=0)
    moved_HW: NDArray[np.float32] = (
        ((photo - baseline) * total_HWC / IG_STEPS).sum(dim=2).numpy().astype(np.float32)
    )
    return moved_HW


def guided_gradient(
    network: OnnxNetwork, pixels_HWC: NDArray[np.uint8], channel: int, row: int, column: int
) -> NDArray[np.float32]:
    """The gradient [H,W,3] of one cell of a map, with what holds it back left out.

    *network* is guided and gives the map [1,C,h,w] alone.
    """
    photo = _floats(pixels_HWC)[None].requires_grad_()
    [map_NChw] = network(photo)
    [gradient_NHWC] = torch.autograd.grad(map_NChw[0, channel, row, column], photo)
    found: NDArray[np.float32] = gradient_NHWC[0].numpy()
    return found


def effective_field(network: OnnxNetwork, pixels_HWC: NDArray[np.uint8]) -> EffectiveField:
    """The effective receptive field of the middle cell of a map, for this photo.

    *network* gives the map [1,C,h,w] alone.
    """
    photo = _floats(pixels_HWC)[None].requires_grad_()
    [map_NChw] = network(photo)
    row, column = map_NChw.shape[2] // 2, map_NChw.shape[3] // 2
    [gradient_NHWC] = torch.autograd.grad(map_NChw[0, :, row, column].sum(), photo)
    strength_HW: NDArray[np.float32] = gradient_NHWC[0].abs().mean(dim=2).numpy()
    peak = float(strength_HW.max())
    return EffectiveField(
        gradient_HW=strength_HW / peak if peak else strength_HW,
        row=row,
        column=column,
        side_px=_side(strength_HW),
    )


def _side(strength_HW: NDArray[np.float32]) -> int:
    """The least side of a square around the centre of mass that holds `MASS` of *strength_HW*."""
    total = float(strength_HW.sum())
    if not total:
        return 0
    height, width = int(strength_HW.shape[0]), int(strength_HW.shape[1])
    y = round(float((strength_HW.sum(axis=1) * np.arange(height)).sum()) / total)
    x = round(float((strength_HW.sum(axis=0) * np.arange(width)).sum()) / total)
    for reach in range(max(height, width)):
        rows = slice(max(0, y - reach), y + reach + 1)
        columns = slice(max(0, x - reach), x + reach + 1)
        if strength_HW[rows, columns].sum() >= MASS * total:
            return 2 * reach + 1
    return max(height, width)


def _floats(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels_HWC.astype(np.float32))
