"""A run's configuration: what is out of range is refused with the value and the range, before any
work.
"""

import dataclasses
import json
import re

import pytest

from models.errors import ConfigError
from models.networks.catalogue import networks
from training.config import TrainConfig, config_from_json, replace_fields
from training.recipes import RECIPES, SMOKE_IMAGES, recipe, smoke

CONFIG = TrainConfig(network="resnet18")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("image_size=15", "image_size is 15; expected 16 to 1024, or 0 for that of the weights"),
        ("resize_size=9000", "resize_size is 9000; expected 16 to 8192, or 0"),
        ("epochs=0", "epochs is 0; expected 1 or more"),
        ("batch_size=1", "batch_size is 1; expected 2 or more, or 0 for what fits"),
        ("learning_rate=0", "learning_rate is 0.0; expected above 0 to 10"),
        ("learning_rate=nan", "learning_rate is nan; expected above 0 to 10"),
        ("weight_decay=-1", "weight_decay is -1.0; expected 0 or more"),
        ("warmup_share=1", "warmup_share is 1.0; expected 0 to below 1"),
        ("label_smoothing=0.6", "label_smoothing is 0.6; expected 0 to 0.5"),
        ("crop_scale_min=0", "crop_scale_min is 0.0; expected above 0 to 1"),
        ("max_train_images=1", "max_train_images is 1; expected 0, or 2 or more"),
        ("max_train_images=-1", "max_train_images is -1; expected 0, or 2 or more"),
        ("probe_epochs=-1", "probe_epochs is -1; expected 0 or more"),
        ("probe_learning_rate=0", "probe_learning_rate is 0.0; expected above 0 to 10"),
        ("layer_decay=0", "layer_decay is 0.0; expected above 0 to 1"),
        ("optimiser=lion", "optimiser is lion; expected adamw or sgd"),
        ("clip_norm=inf", "clip_norm is inf; expected 0 or more"),
        ("accumulate=0", "accumulate is 0; expected 1 or more"),
        ("ema_decay=1", "ema_decay is 1.0; expected 0 to below 1"),
        ("patience=-1", "patience is -1; expected 0 or more"),
        ("augment=auto", "augment is auto; expected none or trivial or rand"),
        ("erasing=1.1", "erasing is 1.1; expected 0 to 1"),
        ("mixup=-1", "mixup is -1.0; expected 0 to 10"),
        ("cutmix=11", "cutmix is 11.0; expected 0 to 10"),
        ("precision=fp8", "precision is fp8; expected fp32 or bf16 or fp16"),
        ("distillation=0", "distillation is 0.0; expected above 0 to 1"),
        ("distillation_temperature=21", "distillation_temperature is 21.0; expected above 0 to 20"),
        ("max_unreadable_share=1", "max_unreadable_share is 1.0; expected 0 to below 1"),
        ("decode_workers=65", "decode_workers is 65; expected 0 to 64"),
        ("epochs=many", "--set epochs=many: expected a whole number"),
        ("learning_rate=fast", "--set learning_rate=fast: expected a number"),
        ("class_weights=yes", "--set class_weights=yes: expected true or false"),
        ("epochs", "--set epochs: expected field=value"),
        ("epoch=3", "--set epoch=3: no field epoch; did you mean epochs?"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_what_is_expected(assignment, expected):
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        replace_fields(CONFIG, [assignment])


def test_a_run_may_be_probe_epochs_alone():
    assert replace_fields(CONFIG, ["probe_epochs=2", "epochs=0"]).epochs == 0
    with pytest.raises(ConfigError, match=r"^epochs is -1; expected 0 or more$"):
        replace_fields(CONFIG, ["probe_epochs=2", "epochs=-1"])


def test_a_field_that_resembles_none_is_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"no field zzz; fields: network, weights, image_size, "):
        replace_fields(CONFIG, ["zzz=1"])


def test_assignments_are_parsed_by_the_type_of_the_field():
    changed = replace_fields(
        CONFIG,
        [
            "epochs=3",
            "learning_rate=1e-4",
            "class_weights=True",
            "weights=a=b.pth",
            "image_size=320",
            "resize_size=352",
        ],
    )
    assert changed == dataclasses.replace(
        CONFIG,
        epochs=3,
        learning_rate=1e-4,
        class_weights=True,
        weights="a=b.pth",
        image_size=320,
        resize_size=352,
    )


def test_json_gives_the_same_config_back():
    config = dataclasses.replace(CONFIG, learning_rate=0.1 + 0.2, seed=7, freeze="layer1..layer3")
    assert config_from_json(config.to_json(), origin="here") == config


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"network": "resnet18", "wings": 2}),
        json.dumps({"network": "resnet18", "epochs": "3"}),
    ],
)
def test_json_that_is_no_config_is_refused_with_its_origin(text):
    with pytest.raises(ConfigError, match=r"^runs/a/config\.json: not a run's configuration: "):
        config_from_json(text, origin="runs/a/config.json")


def test_every_recipe_makes_a_config_of_a_network_that_exists():
    assert len(RECIPES) >= 3
    for name in RECIPES:
        assert recipe(name).network in networks()


def test_an_unknown_recipe_is_answered_with_the_nearest_and_all():
    with pytest.raises(
        ConfigError,
        match=(
            r"unknown recipe 'finetun'\. Did you mean finetune\? Valid: finetune, linear_probe,"
            r" from_scratch, quality, "
        ),
    ):
        recipe("finetun")


@pytest.mark.parametrize("name", RECIPES)
def test_the_smoke_variant_is_short_and_small(name):
    small = smoke(recipe(name))
    assert small.probe_epochs <= 2
    assert (small.epochs, small.max_train_images) == (
        0 if name == "linear_probe" else 1,
        SMOKE_IMAGES,
    )
    assert small.image_size == small.resize_size <= 64
