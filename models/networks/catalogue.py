"""The networks that Loupe trains, by name, each split into features and a head.

Letters used in shapes: N images, K classes, D embedding features, h and w cells of the last feature
map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torchvision import models as vision
from torchvision.models import WeightsEnum

from models.errors import ConfigError
from models.networks import plain, zoo
from models.networks.network import Network
from models.networks.options import SIMPLE_CNN, SimpleCnnConfig, simple_cnn_config, split_name


@dataclass(frozen=True)
class Entry:
    """How a network is made, and how weights of torchvision's fit it."""

    make: Callable[[int], Network]
    """The network for K classes, with random weights."""
    weights: WeightsEnum | None = None
    """torchvision's best published weights, with ImageNet's mean and standard deviation; None: there are none."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Pattern found in torchvision's parameter names -> what stands there in ours, first match wins."""
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


def _resnet(make: zoo.Make, weights: WeightsEnum) -> Entry:
    return Entry(partial(zoo.resnet, make), weights, {r"^fc\.": "head.linear.", r"^": "features."})


def _mobilenet_v2(make: zoo.Make, weights: WeightsEnum) -> Entry:
    return Entry(partial(zoo.mobilenet_v2, make), weights, {r"^classifier\.1\.": "head.linear."})


def _mobilenet_v3(make: zoo.Make, weights: WeightsEnum) -> Entry:
    return Entry(
        partial(zoo.mobilenet_v3, make),
        weights,
        {r"^classifier\.0\.": "head.hidden.", r"^classifier\.3\.": "head.linear."},
    )


def _alexnet(make: zoo.Make, weights: WeightsEnum) -> Entry:
    renames = {
        r"^classifier\.1\.": "head.hidden.0.",
        r"^classifier\.4\.": "head.hidden.1.",
        r"^classifier\.6\.": "head.linear.",
    }
    return Entry(partial(zoo.alexnet, make), weights, renames, smallest_size=63)


def _vgg(make: zoo.Make, weights: WeightsEnum) -> Entry:
    renames = {
        r"^classifier\.0\.": "head.hidden.0.",
        r"^classifier\.3\.": "head.hidden.1.",
        r"^classifier\.6\.": "head.linear.",
    }
    return Entry(partial(zoo.vgg, make), weights, renames, smallest_size=32)


def _densenet(make: zoo.Make, weights: WeightsEnum) -> Entry:
    # torchvision still serves weights from before its names lost a dot:
    # `denselayer1.norm.1.weight`.
    renames = {r"^classifier\.": "head.linear.", r"(?<=\.)(norm|conv)\.([12])(?=\.)": r"\1\2"}
    return Entry(partial(zoo.densenet, make), weights, renames, smallest_size=29)


def _efficientnet(make: zoo.Make, weights: WeightsEnum) -> Entry:
    return Entry(partial(zoo.efficientnet, make), weights, {r"^classifier\.1\.": "head.linear."})


def _convnext(make: zoo.Make, weights: WeightsEnum) -> Entry:
    renames = {r"^classifier\.0\.": "head.norm.", r"^classifier\.2\.": "head.linear."}
    return Entry(partial(zoo.convnext, make), weights, renames, smallest_size=32)


def _googlenet() -> Entry:
    # init_weights by name, because torchvision warns until somebody chooses.
    make = partial(vision.googlenet, aux_logits=False, init_weights=True)
    renames = {r"^fc\.": "head.linear.", r"^": "features."}
    return Entry(
        partial(zoo.googlenet, make),
        vision.GoogLeNet_Weights.DEFAULT,
        renames,
        dropped=r"^aux[12]\.",
    )


_CATALOGUE = {
    "resnet18": _resnet(vision.resnet18, vision.ResNet18_Weights.DEFAULT),
    "resnet34": _resnet(vision.resnet34, vision.ResNet34_Weights.DEFAULT),
    "resnet50": _resnet(vision.resnet50, vision.ResNet50_Weights.DEFAULT),
    "resnet101": _resnet(vision.resnet101, vision.ResNet101_Weights.DEFAULT),
    "resnet152": _resnet(vision.resnet152, vision.ResNet152_Weights.DEFAULT),
    "mobilenet_v2": _mobilenet_v2(vision.mobilenet_v2, vision.MobileNet_V2_Weights.DEFAULT),
    "mobilenet_v3_small": _mobilenet_v3(
        vision.mobilenet_v3_small, vision.MobileNet_V3_Small_Weights.DEFAULT
    ),
    "mobilenet_v3_large": _mobilenet_v3(
        vision.mobilenet_v3_large, vision.MobileNet_V3_Large_Weights.DEFAULT
    ),
    "lenet5": Entry(plain.lenet5, size_without_weights=28),
    "alexnet": _alexnet(vision.alexnet, vision.AlexNet_Weights.DEFAULT),
    "vgg11": _vgg(vision.vgg11, vision.VGG11_Weights.DEFAULT),
    "vgg11_bn": _vgg(vision.vgg11_bn, vision.VGG11_BN_Weights.DEFAULT),
    "vgg13": _vgg(vision.vgg13, vision.VGG13_Weights.DEFAULT),
    "vgg13_bn": _vgg(vision.vgg13_bn, vision.VGG13_BN_Weights.DEFAULT),
    "vgg16": _vgg(vision.vgg16, vision.VGG16_Weights.DEFAULT),
    "vgg16_bn": _vgg(vision.vgg16_bn, vision.VGG16_BN_Weights.DEFAULT),
    "vgg19": _vgg(vision.vgg19, vision.VGG19_Weights.DEFAULT),
    "vgg19_bn": _vgg(vision.vgg19_bn, vision.VGG19_BN_Weights.DEFAULT),
    "googlenet": _googlenet(),
    "densenet121": _densenet(vision.densenet121, vision.DenseNet121_Weights.DEFAULT),
    "densenet169": _densenet(vision.densenet169, vision.DenseNet169_Weights.DEFAULT),
    "densenet201": _densenet(vision.densenet201, vision.DenseNet201_Weights.DEFAULT),
    "efficientnet_b0": _efficientnet(
        vision.efficientnet_b0, vision.EfficientNet_B0_Weights.DEFAULT
    ),
    "efficientnet_b1": _efficientnet(
        vision.efficientnet_b1, vision.EfficientNet_B1_Weights.DEFAULT
    ),
    "efficientnet_b2": _efficientnet(
        vision.efficientnet_b2, vision.EfficientNet_B2_Weights.DEFAULT
    ),
    "efficientnet_b3": _efficientnet(
        vision.efficientnet_b3, vision.EfficientNet_B3_Weights.DEFAULT
    ),
    "convnext_tiny": _convnext(vision.convnext_tiny, vision.ConvNeXt_Tiny_Weights.DEFAULT),
    "convnext_small": _convnext(vision.convnext_small, vision.ConvNeXt_Small_Weights.DEFAULT),
    SIMPLE_CNN: _simple_cnn(SimpleCnnConfig()),
}
