"""A network that somebody else wrote, split into a body and one linear layer.

Where the answer is a linear layer on the mean over cells, perhaps with a normalisation or a hidden
layer between, maps come in closed form as in `models.networks.heads`. Elsewhere, as with class
tokens, there is an embedding and no map. `split` finds out which.

Letters used in shapes: N images, K classes, C channels of the feature map, D embedding features, J
hidden features, T tokens, h and w cells of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from models.networks.foreign.steps import push, value
from models.networks.heads import LinearHead, pushed
from models.networks.network import Network


@dataclass(frozen=True)
class Layout:
    """Where the feature map lies in what a body gives."""

    axes: str
    """`NCHW`, `NHWC`, or `NTC` for tokens."""
    prefix: int = 0
    """Tokens before those of the cells, such as a class token."""
    grid: tuple[int, int] = (0, 0)
    """h and w of tokens."""

    def map(self, found: Tensor) -> Tensor:
        """The feature map [N,C,h,w]."""
        if self.axes == "NCHW":
            return found
        if self.axes == "NHWC":
            return found.permute(0, 3, 1, 2)
        cells_NTC = found[:, self.prefix :]
        return cells_NTC.transpose(1, 2).reshape(len(found), -1, *self.grid)


@dataclass(frozen=True)
class Closed:
    """A head in closed form: the mean over cells, the modules *between*, a linear layer."""

    layout: Layout
    between: tuple[str, ...] = ()
    """Names of modules in the body, in order."""


@dataclass(frozen=True)
class Replaced:
    """What of the original module the new linear layer stands for."""

    classifier: str | None
    """Name of the linear layer that has the same place; None: there is none such."""
    others: tuple[str, ...] = field(default=())
    """Names of modules whose weights have no place any more."""


class BodyNetwork(Network):
    """Features that know how to pool themselves, and a linear layer.

    `features` gives whatever its module gives before pooling, and `pool` makes the embedding of it.
    """

    def __init__(
        self,
        features: nn.Module,
        head: LinearHead,
        *,
        closed: Closed | None,
        replaced: Replaced,
    ) -> None:
        super().__init__(features, head)
        self.closed, self.replaced = closed, replaced

    @property
    def has_maps(self) -> bool:
        """Whether class-activation maps can be had."""
        return self.closed is not None

    def embed(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map [N,C,h,w], or what comes before pooling if there is none; embedding."""
        found: Tensor = self.features(images_N3HW)
        features = found if self.closed is None else self.closed.layout.map(found)
        return features, pooled(self.features, found)

    def class_activation(self, embedding_ND: Tensor, features_NChw: Tensor) -> Tensor:
        """Grad-CAM before its ReLU, for every class, [N,K,h,w]."""
        assert self.closed is not None, "without a closed form there is no output `cam`"
        x_NJ, direction_NJhw = features_NChw.mean(dim=(2, 3)), features_NChw
        for name in self.closed.between:
            module = self.features.get_submodule(name)
            direction_NJhw = push(module, x_NJ, direction_NJhw)
            x_NJ = value(module, x_NJ)
        return pushed(direction_NJhw, self.head.linear.weight) / features_NChw[0, 0].numel()

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """*state*, which has the original module's names, under ours."""
        own, dropped = self.replaced.classifier, self.replaced.others
        if all(key.startswith(("features.", "head.linear.")) for key in state):
            return dict(state)
        found = {}
        for key, tensor in state.items():
            if own is not None and key.startswith(f"{own}."):
                # A convolution of 1x1 has two dimensions more.
                found[f"head.linear.{key.removeprefix(f'{own}.')}"] = (
                    tensor.flatten(1) if tensor.ndim == 4 else tensor
                )
            elif not any(key.startswith(f"{name}.") for name in dropped):
                found[f"features.{key}"] = tensor
        if (weight := found.get("head.linear.weight")) is not None:
            found.setdefault("head.linear.bias", weight.new_zeros(len(weight)))
        return found


def pooled(features: nn.Module, found: Tensor) -> Tensor:
    """The embedding [N,D] that *features* make of what they gave."""
    head = cast("Callable[..., Tensor] | None", getattr(features, "forward_head", None))
    return (found if head is None else head(found, pre_logits=True)).flatten(1)
