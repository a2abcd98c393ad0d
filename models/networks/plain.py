"""Two small networks of our own: LeNet-5, and `simple_cnn`, whose parts can be exchanged."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from models.networks.heads import ACTIVATIONS, DenseHead, dense_layers
from models.networks.network import Network
from models.networks.options import GROUPS, Norm, SimpleCnnConfig

LENET_GRID = 7
FLATTEN_GRID = 4


def lenet5(num_classes: int) -> Network:
    """LeNet-5 as it is taught: 20 and 50 filters of 5x5, ReLU, 2x2 max pooling, 500 units.

    At 28x28 the head gets 50 x 7 x 7 features; other sizes are averaged to 7x7 cells. It takes RGB
    like every network here: a grey image has three equal channels, so the 20 filters of the first
    layer have 3 x 25 weights and not 25. Source: LeCun et al. 1998, which has 6 and 16 filters,
    tanh and average pooling; the counts are those of Caffe's `lenet`.
    """
    features = nn.Sequential(
        nn.Conv2d(3, 20, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return Network(
        features,
        DenseHead(
            dense_layers([50 * LENET_GRID**2, 500]), nn.Linear(500, num_classes), grid=LENET_GRID
        ),
    )


def simple_cnn(config: SimpleCnnConfig, num_classes: int) -> Network:
    """Blocks of convolution, norm, activation and downsampling, then a dense head."""
    channels = pairwise((3, *config.widths))
    blocks = (_block(config, inputs, outputs) for inputs, outputs in channels)
    features = nn.Sequential(
        OrderedDict((f"block{number}", block) for number, block in enumerate(blocks, start=1))
    )
    grid = 1 if config.pooling == "average" else FLATTEN_GRID
    sizes = [config.widths[-1] * grid**2, *([config.units] if config.units else [])]
    head = DenseHead(
        dense_layers(sizes),
        nn.Linear(sizes[-1], num_classes),
        grid=grid,
        activation=config.activation,
        dropout=config.dropout,
    )
    return Network(features, head)


def _block(config: SimpleCnnConfig, inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(
        inputs,
        outputs,
        config.kernel,
        stride=2 if config.downsampling == "strided" else 1,
        padding=0 if config.padding == "valid" else config.kernel // 2,
        padding_mode="zeros" if config.padding == "valid" else config.padding,
        # Every normalisation has a bias of its own.
        bias=config.norm == "none",
    )
    block = nn.Sequential(convolution)
    if config.norm != "none":
        block.append(_norm(config.norm, outputs))
    block.append(ACTIVATIONS[config.activation].make())
    if config.downsampling != "strided":
        block.append(nn.MaxPool2d(2) if config.downsampling == "max" else nn.AvgPool2d(2))
    return block


def _norm(norm: Norm, channels: int) -> nn.Module:
    """Layer and instance normalisation are group normalisation with one group, and with all.

    Source: Wu and He 2018.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.GroupNorm(1 if norm == "layer" else GROUPS, channels)
