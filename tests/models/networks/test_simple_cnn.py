"""simple_cnn: every choice is one, said in the name, checked before any work."""

import itertools
import re
from typing import get_args

import pytest
import torch
from torch import nn

from models.errors import ConfigError
from models.networks.catalogue import build, entry
from models.networks.options import (
    SimpleCnnConfig,
    check_options,
    simple_cnn_config,
    split_name,
    with_option,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are what makes small batches slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def choices(option):
    return get_args(SimpleCnnConfig.model_fields[option].annotation)


def kinds(name):
    return [type(module) for module in build(name, num_classes=2).features.modules()]


def test_the_default_is_three_blocks_a_mean_and_a_dense_layer():
    network = build("simple_cnn", num_classes=5)
    convolutions = [
        module for module in network.features.modules() if isinstance(module, nn.Conv2d)
    ]
    assert [
        (layer.in_channels, layer.out_channels, layer.kernel_size) for layer in convolutions
    ] == [(3, 32, (3, 3)), (32, 64, (3, 3)), (64, 128, (3, 3))]
    assert (
        kinds("simple_cnn").count(nn.BatchNorm2d)
        == kinds("simple_cnn").count(nn.MaxPool2d)
        == kinds("simple_cnn").count(nn.ReLU)
        == 3
    )
    assert network.head.embedding_size == 128
    assert network.head.dropout.p == 0.2


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("norm=instance", nn.InstanceNorm2d),
        ("norm=group", nn.GroupNorm),
        ("norm=layer", nn.GroupNorm),
        ("activation=leaky_relu", nn.LeakyReLU),
        ("activation=elu", nn.ELU),
        ("activation=gelu", nn.GELU),
        ("downsampling=average", nn.AvgPool2d),
    ],
)
def test_a_choice_replaces_one_part_of_each_block(option, kind):
    found, default = kinds(f"simple_cnn,{option}"), kinds("simple_cnn")
    assert found.count(kind) == 3
    assert sum(a is not b for a, b in zip(found, default, strict=True)) == 3


def test_layer_normalisation_is_over_a_whole_image_and_group_over_eight_groups():
    layer, group = (
        next(
            m
            for m in build(f"simple_cnn,norm={n}", num_classes=2).features.modules()
            if isinstance(m, nn.GroupNorm)
        )
        for n in ("layer", "group")
    )
    assert (layer.num_groups, group.num_groups) == (1, 8)
    x_NChw = torch.randn(2, 32, 6, 5)
    torch.testing.assert_close(
        layer(x_NChw), nn.functional.layer_norm(x_NChw, (32, 6, 5)), atol=1e-5, rtol=0.0
    )


def test_a_normalised_convolution_has_no_bias_and_a_bare_one_has():
    assert build("simple_cnn", num_classes=2).features.block1[0].bias is None
    bare = build("simple_cnn,norm=none", num_classes=2)
    assert bare.features.block1[0].bias is not None
    assert nn.BatchNorm2d not in kinds("simple_cnn,norm=none")


@pytest.mark.parametrize(
    ("padding", "cells"), [("zeros", 4), ("reflect", 4), ("replicate", 4), ("valid", 2)]
)
def test_padding_decides_what_is_left(padding, cells):
    network = build(f"simple_cnn,padding={padding}", num_classes=2).eval()
    features_NChw, _ = network.embed(torch.zeros(1, 3, 32, 32))
    assert features_NChw.shape == (1, 128, cells, cells)


def test_flattening_keeps_where_something_is_and_the_mean_does_not():
    images_N3HW = torch.zeros(2, 3, 96, 96)
    # Far enough from the border, and a multiple of the three halvings apart.
    images_N3HW[0, :, 32:36, 32:36] = images_N3HW[1, :, 56:60, 56:60] = 10.0
    for pooling, differ in (("average", False), ("flatten", True)):
        torch.manual_seed(0)
        network = build(
            f"simple_cnn,pooling={pooling},norm=none,padding=replicate", num_classes=3
        ).eval()
        with torch.inference_mode():
            here, there = network(images_N3HW)
        assert bool((here - there).abs().max() > 1e-4) == differ


def test_without_units_the_pooled_map_is_the_embedding():
    assert build("simple_cnn,units=0", num_classes=2).head.embedding_size == 128
    assert (
        build("simple_cnn,units=0,pooling=flatten", num_classes=2).head.embedding_size == 128 * 16
    )
    assert build("simple_cnn,units=7", num_classes=2).head.embedding_size == 7


def test_every_combination_runs_and_its_smallest_size_is_the_smallest():
    combinations = list(
        itertools.product(choices("norm"), choices("downsampling"), choices("padding"), ("1", "5"))
    )
    assert len(combinations) == 5 * 3 * 4 * 2
    for norm, downsampling, padding, kernel in combinations:
        name = (
            f"simple_cnn,norm={norm},downsampling={downsampling},padding={padding}"
            f",kernel={kernel},widths=8-8"
        )
        network, smallest = build(name, num_classes=2), entry(name).smallest_size
        assert network(torch.randn(2, 3, smallest, smallest)).shape == (2, 2), name
        if smallest > 1:
            with pytest.raises((RuntimeError, ValueError)):
                network(torch.randn(2, 3, smallest - 1, smallest - 1))


def test_an_image_too_small_is_answered_with_the_smallest():
    with pytest.raises(
        ConfigError,
        match=(
            r"^image_size is 20; network simple_cnn,padding=valid takes images of 22 pixels a side"
            r" or more$"
        ),
    ):
        build("simple_cnn,padding=valid", num_classes=2, image_size=20)
    build("simple_cnn,padding=valid", num_classes=2, image_size=22)


def test_a_name_becomes_a_config_and_back():
    name = "simple_cnn,widths=16-32,norm=group,dropout=0.5"
    assert split_name(name) == (
        "simple_cnn",
        {"widths": "16-32", "norm": "group", "dropout": "0.5"},
    )
    assert simple_cnn_config(split_name(name)[1]) == SimpleCnnConfig(
        widths=(16, 32), norm="group", dropout=0.5
    )
    assert with_option(name, "norm", "group") == name


def test_one_option_after_another_gives_one_name_for_one_network():
    """In the order of the fields, without what is the default anyway."""
    name = with_option(with_option("simple_cnn", "activation", "elu"), "norm", "group")
    assert name == "simple_cnn,norm=group,activation=elu"
    assert with_option(with_option(name, "norm", "batch"), "activation", "relu") == "simple_cnn"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "simple_cnn,norm=bach",
            (
                "simple_cnn: norm is bach; it should be 'batch', 'layer', 'instance', 'group' or"
                " 'none'"
            ),
        ),
        (
            "simple_cnn,nrom=batch",
            "simple_cnn has no option 'nrom'. Did you mean norm? Valid: widths, kernel, norm, ",
        ),
        (
            "simple_cnn,norm",
            (
                "network simple_cnn,norm: expected options as simple_cnn,key=value,key=value, not"
                " 'norm'"
            ),
        ),
        (
            "simple_cnn,widths=12",
            "simple_cnn: widths is 12; it should be a multiple of 8",
        ),
        ("simple_cnn,widths=8-x", "simple_cnn: widths is 8-x; it should be a valid integer"),
        ("simple_cnn,kernel=4", "simple_cnn: kernel is 4; it should be 1, 3, 5 or 7"),
        ("simple_cnn,units=many", "simple_cnn: units is many; it should be a valid integer"),
        ("simple_cnn,units=-1", "simple_cnn: units is -1; it should be greater than or equal to 0"),
        ("simple_cnn,dropout=1", "simple_cnn: dropout is 1; it should be less than 1"),
        (
            "simple_cnn,dropout=nan",
            "simple_cnn: dropout is nan; it should be less than 1",
        ),
        ("resnet18,norm=group", "network resnet18 takes no options (norm); only simple_cnn does"),
    ],
)
def test_an_option_that_makes_no_sense_is_answered_with_what_is_valid(name, expected):
    for refuse in (check_options, entry):
        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
            refuse(name)


def test_an_option_of_another_network_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"^network\.norm=group: network resnet18 takes no options; only simple_cnn does$",
    ):
        with_option("resnet18", "norm", "group")
