"""torchvision's networks, taken apart into features and a head for K classes.

Parameter names stay torchvision's wherever that is possible.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision import models as zoo

from models.networks.heads import DenseHead, HiddenHardswishHead, LayerNormHead, LinearHead
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network

Make = Callable[[], nn.Module]


def resnet(make: Make, num_classes: int) -> Network:
    """ResNet. Source: He et al. 2016."""
    module = make()
    assert isinstance(module, zoo.ResNet)
    return Network(
        _without(module, "avgpool", "fc"), LinearHead(module.fc.in_features, num_classes)
    )


def mobilenet_v2(make: Make, num_classes: int) -> Network:
    """MobileNetV2. Source: Sandler et al. 2018."""
    module = make()
    assert isinstance(module, zoo.MobileNetV2)
    return Network(module.features, LinearHead(module.last_channel, num_classes, dropout=0.2))


def mobilenet_v3(make: Make, num_classes: int) -> Network:
    """MobileNetV3. Source: Howard et al. 2019."""
    module = make()
    assert isinstance(module, zoo.MobileNetV3)
    hidden = module.classifier[0]
    return Network(
        module.features,
        HiddenHardswishHead(hidden.in_features, hidden.out_features, num_classes, dropout=0.2),
    )


def alexnet(make: Make, num_classes: int) -> Network:
    """AlexNet as torchvision has it: one tower, and pooling to 6x6 cells.

    Source: Krizhevsky 2014, "One weird trick".
    """
    module = make()
    assert isinstance(module, zoo.AlexNet)
    hidden = [module.classifier[1], module.classifier[4]]
    return Network(
        module.features,
        DenseHead(hidden, nn.Linear(4096, num_classes), grid=6, dropout=0.5, dropout_first=True),
    )


def vgg(make: Make, num_classes: int) -> Network:
    """VGG, with pooling to 7x7 cells. Source: Simonyan and Zisserman 2015."""
    module = make()
    assert isinstance(module, zoo.VGG)
    linear = nn.Linear(4096, num_classes)
    # torchvision's initial weights; a run from random ones needs them.
    nn.init.normal_(linear.weight, 0.0, 0.01)
    nn.init.zeros_(linear.bias)
    return Network(
        module.features,
        DenseHead([module.classifier[0], module.classifier[3]], linear, grid=7, dropout=0.5),
    )


class _MinusOneToOne(nn.Module):
    """(x - 0.5) / 0.5 of pixels of 0 to 1, from pixels with ImageNet's normalisation."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        scale = images_N3HW.new_tensor([std / 0.5 for std in IMAGENET_STD]).view(1, 3, 1, 1)
        shift = images_N3HW.new_tensor([(mean - 0.5) / 0.5 for mean in IMAGENET_MEAN]).view(
            1, 3, 1, 1
        )
        return images_N3HW * scale + shift


def googlenet(make: Make, num_classes: int) -> Network:
    """GoogLeNet without the two classifiers on its way, which only training ever used, and which
    batch normalisation made needless.

    Takes pixels of -1 to 1 inside, as torchvision's weights of it do (`transform_input`). Source:
    Szegedy et al. 2015.
    """
    module = make()
    assert isinstance(module, zoo.GoogLeNet)
    features = nn.Sequential()
    features.add_module("minus_one_to_one", _MinusOneToOne())
    for key, child in _without(module, "avgpool", "dropout", "fc").named_children():
        features.add_module(key, child)
    return Network(features, LinearHead(module.fc.in_features, num_classes, dropout=0.2))


def densenet(make: Make, num_classes: int) -> Network:
    """DenseNet; the ReLU behind its last normalisation belongs to the features.

    Source: Huang et al. 2017.
    """
    module = make()
    assert isinstance(module, zoo.DenseNet)
    module.features.add_module("relu5", nn.ReLU(inplace=True))
    return Network(module.features, LinearHead(module.classifier.in_features, num_classes))


def efficientnet(make: Make, num_classes: int) -> Network:
    """EfficientNet. Source: Tan and Le 2019."""
    module = make()
    assert isinstance(module, zoo.EfficientNet)
    dropout, linear = module.classifier
    return Network(module.features, LinearHead(linear.in_features, num_classes, dropout=dropout.p))


def convnext(make: Make, num_classes: int) -> Network:
    """ConvNeXt. Source: Liu et al. 2022."""
    module = make()
    assert isinstance(module, zoo.ConvNeXt)
    return Network(module.features, LayerNormHead(module.classifier[2].in_features, num_classes))


def _without(module: nn.Module, *names: str) -> nn.Sequential:
    """The children of *module* in order and under their names, so that its checkpoints load by key,
    but for *names*.
    """
    features = nn.Sequential()
    for key, child in module.named_children():
        if key not in names:
            features.add_module(key, child)
    return features
