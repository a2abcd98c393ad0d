"""Each family of torchvision's networks, split into features and a head for K classes.

Parameter names stay torchvision's wherever that is possible.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from models.networks.heads import DenseHead, HiddenHardswishHead, LayerNormHead, LinearHead
from models.networks.inputs import IMAGENET_MEAN, IMAGENET_STD
from models.networks.network import Network
from models.networks.vision import SqueezeExcitation
from models.networks.vision import vision as zoo


def resnet(module: zoo.ResNet, num_classes: int) -> Network:
    """ResNet. Source: He et al. 2016."""
    head = LinearHead(module.fc.in_features, num_classes)
    return Network(_without(module, "avgpool", "fc"), head)


def mobilenet_v2(module: zoo.MobileNetV2, num_classes: int) -> Network:
    """MobileNetV2. Source: Sandler et al. 2018."""
    return Network(module.features, LinearHead(module.last_channel, num_classes, dropout=0.2))


def mobilenet_v3(module: zoo.MobileNetV3, num_classes: int) -> Network:
    """MobileNetV3. Source: Howard et al. 2019."""
    hidden = module.classifier[0]
    head = HiddenHardswishHead(hidden.in_features, hidden.out_features, num_classes, dropout=0.2)
    return Network(_with_plain_gates(module.features), head)


def alexnet(module: zoo.AlexNet, num_classes: int) -> Network:
    """AlexNet as torchvision has it: one tower, and pooling to 6x6 cells.

    Source: Krizhevsky 2014, "One weird trick".
    """
    hidden, linear = [module.classifier[1], module.classifier[4]], nn.Linear(4096, num_classes)
    head = DenseHead(hidden, linear, grid=6, dropout=0.5, dropout_first=True)
    return Network(module.features, head)


def vgg(module: zoo.VGG, num_classes: int) -> Network:
    """VGG, with pooling to 7x7 cells. Source: Simonyan and Zisserman 2015."""
    linear = nn.Linear(4096, num_classes)
    # torchvision's initial weights, which training from scratch needs.
    nn.init.normal_(linear.weight, 0.0, 0.01)
    nn.init.zeros_(linear.bias)
    hidden = [module.classifier[0], module.classifier[3]]
    return Network(module.features, DenseHead(hidden, linear, grid=7, dropout=0.5))


class _MinusOneToOne(nn.Module):
    """(x - 0.5) / 0.5 of pixels of 0 to 1, from pixels with ImageNet's normalisation."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        scale = images_N3HW.new_tensor([std / 0.5 for std in IMAGENET_STD])
        shift = images_N3HW.new_tensor([(mean - 0.5) / 0.5 for mean in IMAGENET_MEAN])
        return images_N3HW * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1)


def googlenet(module: zoo.GoogLeNet, num_classes: int) -> Network:
    """GoogLeNet without its two auxiliary classifiers, which only training ever used.

    Its features take pixels of -1 to 1, as torchvision's weights do (`transform_input`). Source:
    Szegedy et al. 2015.
    """
    features = nn.Sequential()
    features.add_module("minus_one_to_one", _MinusOneToOne())
    for key, child in _without(module, "avgpool", "dropout", "fc").named_children():
        features.add_module(key, child)
    return Network(features, LinearHead(module.fc.in_features, num_classes, dropout=0.2))


def densenet(module: zoo.DenseNet, num_classes: int) -> Network:
    """DenseNet; the ReLU after its last normalisation belongs to the features.

    Source: Huang et al. 2017.
    """
    module.features.add_module("relu5", nn.ReLU(inplace=True))
    return Network(module.features, LinearHead(module.classifier.in_features, num_classes))


def efficientnet(module: zoo.EfficientNet, num_classes: int) -> Network:
    """EfficientNet. Source: Tan and Le 2019."""
    dropout, linear = module.classifier
    head = LinearHead(linear.in_features, num_classes, dropout=dropout.p)
    return Network(_with_plain_gates(module.features), head)


def inception(module: zoo.Inception3, num_classes: int) -> Network:
    """Inception v3 without its auxiliary classifier. Source: Szegedy et al. 2016.

    Its features take pixels of -1 to 1, as GoogLeNet's do.
    """
    features = nn.Sequential(OrderedDict(minus_one_to_one=_MinusOneToOne()))
    for key, child in _without(module, "avgpool", "dropout", "fc").named_children():
        features.add_module(key, child)
    return Network(features, LinearHead(module.fc.in_features, num_classes, dropout=0.5))


def regnet(module: zoo.RegNet, num_classes: int) -> Network:
    """RegNet. Source: Radosavovic et al. 2020."""
    features = _with_plain_gates(_without(module, "avgpool", "fc"))
    return Network(features, LinearHead(module.fc.in_features, num_classes))


def shufflenet(module: zoo.ShuffleNetV2, num_classes: int) -> Network:
    """ShuffleNet v2. Source: Ma et al. 2018."""
    return Network(_without(module, "fc"), LinearHead(module.fc.in_features, num_classes))


def mnasnet(module: zoo.MNASNet, num_classes: int) -> Network:
    """MNASNet. Source: Tan et al. 2019."""
    return Network(module.layers, LinearHead(1280, num_classes, dropout=0.2))


def swin(module: zoo.SwinTransformer, num_classes: int) -> Network:
    """Swin, either version. Source: Liu et al. 2021 and 2022."""
    features = _without(module, "avgpool", "flatten", "head")
    return Network(features, LinearHead(module.head.in_features, num_classes))


def convnext(module: zoo.ConvNeXt, num_classes: int) -> Network:
    """ConvNeXt. Source: Liu et al. 2022."""
    return Network(module.features, LayerNormHead(module.classifier[2].in_features, num_classes))


class _CellMean(nn.Module):
    """The mean over all cells of a map, [N,C,1,1]."""

    def forward(self, map_NChw: Tensor) -> Tensor:
        return map_NChw.mean(dim=(2, 3), keepdim=True)


def _with_plain_gates(features: nn.Module) -> nn.Module:
    """*features* whose squeeze-and-excitation gates pool by a plain mean.

    torch's exporter turns the adaptive pooling of each gate into a mean and seven operations that
    work out indices for a copy.
    """
    for module in features.modules():
        if isinstance(module, SqueezeExcitation):
            module.avgpool = _CellMean()
    return features


def _without(module: nn.Module, *names: str) -> nn.Sequential:
    """The children of *module* but for *names*, under their names, so that checkpoints load."""
    return nn.Sequential(
        OrderedDict((key, child) for key, child in module.named_children() if key not in names)
    )
