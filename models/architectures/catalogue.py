"""The networks that Loupe trains, by name, each split into features and a head.

Letters used in shapes: N images, K classes, D embedding features, h and w cells of the last feature map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torchvision.models as zoo
from torch import nn
from torchvision.models import WeightsEnum

from models.architectures.network import Head, HiddenHardswishHead, LinearHead, Network
from models.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """How torchvision makes a network, and which of its parts are features and head."""

    make: Callable[[], nn.Module]
    weights: WeightsEnum
    """torchvision's best published weights, with ImageNet's mean and standard deviation."""
    split: Callable[[nn.Module, int], tuple[nn.Module, Head]]
    """(torchvision's module, K) -> features that give [N,D,h,w], and a new head for K classes."""
    renames: Mapping[str, str]
    """Prefix of torchvision's parameter names -> prefix of ours, first match wins."""


def networks() -> tuple[str, ...]:
    """Every valid name, in order."""
    return tuple(_CATALOGUE)


def entry(name: str) -> Entry:
    """The network called *name*. Raises `ConfigError` with the valid names."""
    if name not in _CATALOGUE:
        near = difflib.get_close_matches(name, _CATALOGUE, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown network {name!r}.{hint} Valid: {', '.join(_CATALOGUE)}")
    return _CATALOGUE[name]


def build(name: str, *, num_classes: int) -> Network:
    """The network *name* with random weights and a head for *num_classes*. Raises `ConfigError` for an unknown name."""
    found = entry(name)
    features, head = found.split(found.make(), num_classes)
    return Network(features, head)


def _split_resnet(module: nn.Module, num_classes: int) -> tuple[nn.Module, Head]:
    assert isinstance(module, zoo.ResNet)
    children = dict(module.named_children())
    width = module.fc.in_features
    del children["avgpool"], children["fc"]
    features = nn.Sequential()
    # torchvision's own names, so that its checkpoints load by key.
    for key, child in children.items():
        features.add_module(key, child)
    return features, LinearHead(width, num_classes)


def _split_mobilenet_v2(module: nn.Module, num_classes: int) -> tuple[nn.Module, Head]:
    assert isinstance(module, zoo.MobileNetV2)
    return module.features, LinearHead(module.last_channel, num_classes, dropout=0.2)


def _split_mobilenet_v3(module: nn.Module, num_classes: int) -> tuple[nn.Module, Head]:
    assert isinstance(module, zoo.MobileNetV3)
    hidden = module.classifier[0]
    assert isinstance(hidden, nn.Linear)
    return module.features, HiddenHardswishHead(hidden.in_features, hidden.out_features, num_classes, dropout=0.2)


_RESNET = {"fc.": "head.linear.", "": "features."}
_MOBILENET_V2 = {"classifier.1.": "head.linear."}
_MOBILENET_V3 = {"classifier.0.": "head.hidden.", "classifier.3.": "head.linear."}

_CATALOGUE = {
    "resnet18": Entry(zoo.resnet18, zoo.ResNet18_Weights.DEFAULT, _split_resnet, _RESNET),
    "resnet34": Entry(zoo.resnet34, zoo.ResNet34_Weights.DEFAULT, _split_resnet, _RESNET),
    "resnet50": Entry(zoo.resnet50, zoo.ResNet50_Weights.DEFAULT, _split_resnet, _RESNET),
    "resnet101": Entry(zoo.resnet101, zoo.ResNet101_Weights.DEFAULT, _split_resnet, _RESNET),
    "resnet152": Entry(zoo.resnet152, zoo.ResNet152_Weights.DEFAULT, _split_resnet, _RESNET),
    "mobilenet_v2": Entry(zoo.mobilenet_v2, zoo.MobileNet_V2_Weights.DEFAULT, _split_mobilenet_v2, _MOBILENET_V2),
    "mobilenet_v3_small": Entry(zoo.mobilenet_v3_small, zoo.MobileNet_V3_Small_Weights.DEFAULT, _split_mobilenet_v3, _MOBILENET_V3),
    "mobilenet_v3_large": Entry(zoo.mobilenet_v3_large, zoo.MobileNet_V3_Large_Weights.DEFAULT, _split_mobilenet_v3, _MOBILENET_V3),
}
