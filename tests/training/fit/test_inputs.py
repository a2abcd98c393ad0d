"""A run's images follow its weights, unless its configuration says otherwise."""

import dataclasses
import json

import pytest

from models.errors import ConfigError
from models.networks.inputs import IMAGENET_MEAN, IMAGENET_STD
from training.config import TrainConfig, config_from_json, replace_fields
from training.fit import preparation
from training.fit.inputs import normalisation, preprocess_spec, settled
from training.recipes import recipe


@pytest.mark.parametrize(
    ("network", "weights", "size", "resize_size", "kernel"),
    [
        ("mobilenet_v2", "default", 224, 232, "bilinear"),
        ("mobilenet_v2", "IMAGENET1K_V1", 224, 256, "bilinear"),
        ("efficientnet_b2", "default", 288, 288, "bicubic"),
        ("resnet18", "none", 224, 256, "bilinear"),
        ("lenet5", "none", 28, 32, "bilinear"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384, 384, "bicubic"),
        ("timm:tf_efficientnet_lite0", "photo.safetensors", 224, 256, "bicubic"),
    ],
)
def test_size_and_filter_are_those_of_the_weights(network, weights, size, resize_size, kernel):
    """Read from torchvision's enumerations and timm's configurations, which name their own."""
    spec = preprocess_spec(TrainConfig(network=network, weights=weights))
    assert (spec.crop, spec.resize_size, spec.filter) == ((size, size), resize_size, kernel)


def test_another_image_size_keeps_the_share_of_the_crop():
    spec = preprocess_spec(TrainConfig(network="timm:tf_efficientnet_lite0", image_size=160))
    assert (spec.crop, spec.resize_size) == ((160, 160), 182)
    own = replace_fields(recipe("finetune"), ["resize=stretch", "resize_size=240"])
    assert (preprocess_spec(own).resize, preprocess_spec(own).resize_size) == ("stretch", 240)


def test_a_settled_configuration_stays_as_it_is_and_is_what_a_run_records():
    config = settled(TrainConfig(network="timm:tf_efficientnet_lite0"))
    assert (config.image_size, config.resize_size) == (224, 256)
    assert (config.mean, config.std) == ("0.5,0.5,0.5", "0.5,0.5,0.5")
    assert settled(config) is config
    assert config_from_json(config.to_json(), origin="test") == config
    assert normalisation(config) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_run_from_before_is_exported_as_it_was_trained():
    """Its network would have other images by now."""
    old = dataclasses.asdict(
        TrainConfig(network="efficientnet_b2", image_size=224, resize_size=256)
    )
    for name in ("resize", "interpolation", "mean", "std"):
        del old[name]
    config = config_from_json(json.dumps(old), origin="test")
    assert preprocess_spec(config).filter == "bilinear"
    assert normalisation(config) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("mean=0.5", r"mean is 0\.5; expected weights, or three numbers as 0\.485"),
        ("mean=0.5,0.5,nan", "mean is 0.5,0.5,nan"),
        ("std=0.5,0.5,0", "each above 0"),
        ("interpolation=area", "interpolation is area; expected weights or nearest"),
        ("image_size=8", "expected 16 to 1024, or 0 for that of the weights"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_may_be(field, message):
    with pytest.raises(ConfigError, match=message):
        replace_fields(recipe("finetune"), [field])


def test_statistics_are_joined_after_each_process_has_tried_batches_alone(monkeypatch, tmp_path):
    """A joined layer waits for all processes, whose tries end at different sizes.

    So one that ended later would wait for ever.
    """
    from tests.training.photos import in_memory
    from tests.training.small_runs import TINY
    from training.distributed import ALONE

    order = []

    def found(*_, **__):
        order.append("tried")
        return 4

    def joined(network, processes):
        order.append("joined")
        return network

    monkeypatch.setattr(preparation, "find_batch_size", found)
    monkeypatch.setattr(preparation, "synchronised", joined)
    config = dataclasses.replace(TINY, batch_size=0)
    prepared = preparation.prepare(config, in_memory(train=8, held_out=2), ALONE)
    assert order == ["tried", "joined"]
    assert prepared.config.batch_size == 4
