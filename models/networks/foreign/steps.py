"""Modules between pooling and the last layer of other people's heads: values and derivatives.

Letters used in shapes: N images, D and J features before and after, h and w cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.networks.heads import gelu_slope, hardswish_slope, normalised_direction, pushed

BETWEEN: tuple[tuple[str, ...], ...] = (
    (),
    ("fc_norm",),
    ("norm",),
    ("norm_pre",),
    ("head.norm",),
    ("conv_head", "act2"),
    ("conv_head", "norm_head", "act2"),
    ("conv_head", "norm_head"),
    ("head.norm", "head.pre_logits.fc", "head.pre_logits.act"),
)
"""Names of modules that timm's heads have there, in their order. Each sequence is tried."""


def is_known(module: nn.Module) -> bool:
    """Whether *module* is of a kind that `value` and `push` know."""
    return _is_affine(module) or isinstance(module, (nn.LayerNorm, *_ACTIVATIONS))


def value(module: Any, x_ND: Tensor) -> Tensor:  # Any: one that `is_known`
    """What *module* makes of features [N,D], in evaluation."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x_ND, (x_ND.shape[1],), module.weight, module.bias, module.eps)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return F.linear(x_ND, module.weight.flatten(1), module.bias)
    if isinstance(module, nn.BatchNorm2d):
        return _act(module)(_normalised(module, x_ND))  # type: ignore[no-any-return]
    return module(x_ND)  # type: ignore[no-any-return]


def push(module: Any, x_ND: Tensor, direction_NDhw: Tensor) -> Tensor:
    """The derivative of `value` at *x_ND* in the direction of every cell, [N,J,h,w]."""
    if isinstance(module, nn.LayerNorm):
        found = normalised_direction(x_ND, direction_NDhw, module.eps)
        return found if module.weight is None else found * module.weight[:, None, None]
    if isinstance(module, nn.BatchNorm2d):
        return _push_batch_norm(module, x_ND, direction_NDhw)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return pushed(direction_NDhw, module.weight.flatten(1))
    return direction_NDhw * _slope(module, x_ND)[:, :, None, None]


def _push_batch_norm(module: Any, x_ND: Tensor, direction_NDhw: Tensor) -> Tensor:
    found = direction_NDhw * _scale(module)[:, None, None]
    return found * _slope(_act(module), _normalised(module, x_ND))[:, :, None, None]


def _normalised(module: Any, x_ND: Tensor) -> Tensor:
    normalised: Tensor = (x_ND - module.running_mean) * _scale(module) + module.bias
    return normalised


def _scale(module: Any) -> Tensor:
    scale_D: Tensor = module.weight / (module.running_var + module.eps).sqrt()
    return scale_D


def _act(module: nn.Module) -> Any:
    """The activation in which timm's `BatchNormAct2d` ends; the identity for others."""
    return getattr(module, "act", nn.Identity())


def _is_affine(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    if isinstance(module, nn.BatchNorm2d):
        known = isinstance(_act(module), _ACTIVATIONS)
        return known and module.track_running_stats and module.affine
    return isinstance(module, nn.Linear)


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


_ACTIVATIONS = (nn.Identity, nn.ReLU, nn.Hardswish, nn.GELU, nn.SiLU)


def _slope(module: nn.Module, x: Tensor) -> Tensor:
    """Slope of an activation, with torch's choice at every kink."""
    if isinstance(module, nn.Identity):
        return torch.ones_like(x)
    if isinstance(module, nn.ReLU):
        return (x > 0.0).to(x.dtype)
    if isinstance(module, nn.Hardswish):
        return hardswish_slope(x)
    if isinstance(module, nn.SiLU):
        return _silu_slope(x)
    return gelu_slope(x)
