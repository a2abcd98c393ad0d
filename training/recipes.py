"""Recipes: functions that return a `TrainConfig`. Each docstring gives the command, what to expect, and on what machine."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from models.errors import ConfigError
from training.config import TrainConfig

SMOKE_IMAGES = 128


def finetune() -> TrainConfig:
    """Pretrained MobileNetV3-small, every layer trained: `loupe train --recipe finetune --data PHOTOS --out RUN`."""
    return TrainConfig(network="mobilenet_v3_small", weights="default", epochs=10, batch_size=32, learning_rate=5e-4)


def linear_probe() -> TrainConfig:
    """A new head on frozen pretrained features: `loupe train --recipe linear_probe --data PHOTOS --out RUN`."""
    return TrainConfig(
        network="mobilenet_v2", weights="default", epochs=15, batch_size=32, learning_rate=5e-3, weight_decay=0.0, freeze_features=True
    )


def digits() -> TrainConfig:
    """ResNet-18 on scikit-learn's handwritten digits at 32x32: `loupe train --recipe digits --data digits --out RUN`."""
    return TrainConfig(
        network="resnet18",
        weights="none",
        image_size=32,
        resize_size=32,
        epochs=15,
        batch_size=64,
        learning_rate=2e-3,
        crop_scale_min=0.7,
        horizontal_flip=False,
        label_smoothing=0.05,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {recipe.__name__: recipe for recipe in (finetune, linear_probe, digits)}


def recipe(name: str) -> TrainConfig:
    """The config of the recipe called *name*. Raises `ConfigError` with the valid names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown recipe {name!r}.{hint} Valid: {', '.join(RECIPES)}")
    return RECIPES[name]()


def smoke(config: TrainConfig) -> TrainConfig:
    """*config* shrunk to prove in under a minute on a CPU that it runs; what it trains is worth nothing."""
    size = min(config.image_size, 64)
    return dataclasses.replace(config, epochs=1, max_train_images=SMOKE_IMAGES, image_size=size, resize_size=size, batch_size=16)
