"""The networks that Loupe trains, by name, each split into features and a head."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from models.errors import ConfigError
from models.networks import plain, zoo
from models.networks.network import Network
from models.networks.options import SIMPLE_CNN, SimpleCnnConfig, simple_cnn_config, split_name
from models.networks.vision import WeightsEnum, vision


@dataclass(frozen=True)
class Entry:
    """How a network is made, and how torchvision's weights fit it."""

    make: Callable[[int], Network]
    """The network for a number of classes, with random weights."""
    weights: WeightsEnum | None = None
    """torchvision's best published weights, for pixels normalised as ImageNet's; or None."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Pattern in torchvision's parameter names -> its replacement in ours; the first match wins."""
    dropped: str | None = None
    """Pattern of torchvision's parameter names that have no place in ours."""
    smallest_size: int = 16
    """Least height and width of an image, in pixels."""
    size_without_weights: int = 224

    @property
    def usual_size(self) -> int:
        """Height and width of the images that the published weights were trained on, in pixels."""
        if self.weights is None:
            return self.size_without_weights
        size: int = self.weights.transforms().crop_size[0]
        return size


def networks() -> tuple[str, ...]:
    """Every valid name, in order."""
    return tuple(_CATALOGUE)


def entry(name: str) -> Entry:
    """The network called *name*, with its options if it has any.

    Raises `ConfigError` with what is valid.
    """
    base, options = split_name(name)
    if base not in _CATALOGUE:
        near = difflib.get_close_matches(base, _CATALOGUE, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown network {base!r}.{hint} Valid: {', '.join(_CATALOGUE)}")
    return _simple_cnn(simple_cnn_config(options)) if options else _CATALOGUE[base]


def build(name: str, *, num_classes: int, image_size: int | None = None) -> Network:
    """The network *name* with random weights and a head for *num_classes*.

    Raises `ConfigError` for an unknown name or option, and for an *image_size* in pixels that
    leaves no feature map.
    """
    found = entry(name)
    if image_size is not None and image_size < found.smallest_size:
        raise ConfigError(
            f"image_size is {image_size}; network {name} takes images of {found.smallest_size}"
            " pixels a side or more"
        )
    return found.make(num_classes)


def _simple_cnn(config: SimpleCnnConfig) -> Entry:
    return Entry(partial(plain.simple_cnn, config), smallest_size=config.smallest_size)


def _family(
    split: Callable[[Any, int], Network],
    names: str,
    renames: Mapping[str, str],
    options: Mapping[str, bool] | None = None,
    **facts: Any,
) -> dict[str, Entry]:
    """An entry for each of *names*, which torchvision makes with *options* and *split* splits."""

    def make(name: str, num_classes: int) -> Network:
        return split(vision.get_model(name, **(options or {})), num_classes)

    return {
        name: Entry(
            partial(make, name), vision.get_model_weights(name)["DEFAULT"], renames, **facts
        )
        for name in names.split()
    }


_CATALOGUE = {
    **_family(
        zoo.resnet,
        "resnet18 resnet34 resnet50 resnet101 resnet152",
        {r"^fc\.": "head.linear.", r"^": "features."},
    ),
    **_family(zoo.mobilenet_v2, "mobilenet_v2", {r"^classifier\.1\.": "head.linear."}),
    **_family(
        zoo.mobilenet_v3,
        "mobilenet_v3_small mobilenet_v3_large",
        {r"^classifier\.0\.": "head.hidden.", r"^classifier\.3\.": "head.linear."},
    ),
    "lenet5": Entry(plain.lenet5, size_without_weights=28),
    **_family(
        zoo.alexnet,
        "alexnet",
        {
            r"^classifier\.1\.": "head.hidden.0.",
            r"^classifier\.4\.": "head.hidden.1.",
            r"^classifier\.6\.": "head.linear.",
        },
        smallest_size=63,
    ),
    **_family(
        zoo.vgg,
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
        {
            r"^classifier\.0\.": "head.hidden.0.",
            r"^classifier\.3\.": "head.hidden.1.",
            r"^classifier\.6\.": "head.linear.",
        },
        smallest_size=32,
    ),
    # Without a choice of init_weights torchvision warns.
    **_family(
        zoo.googlenet,
        "googlenet",
        {r"^fc\.": "head.linear.", r"^": "features."},
        {"aux_logits": False, "init_weights": True},
        dropped=r"^aux[12]\.",
    ),
    # torchvision's published weights have one dot more: `denselayer1.norm.1.weight`.
    **_family(
        zoo.densenet,
        "densenet121 densenet169 densenet201",
        {r"^classifier\.": "head.linear.", r"(?<=\.)(norm|conv)\.([12])(?=\.)": r"\1\2"},
        smallest_size=29,
    ),
    **_family(
        zoo.efficientnet,
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3",
        {r"^classifier\.1\.": "head.linear."},
    ),
    **_family(
        zoo.convnext,
        "convnext_tiny convnext_small",
        {r"^classifier\.0\.": "head.norm.", r"^classifier\.2\.": "head.linear."},
        smallest_size=32,
    ),
    SIMPLE_CNN: _simple_cnn(SimpleCnnConfig()),
}
