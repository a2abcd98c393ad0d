"""Recipes: functions that return a `TrainConfig`.

Each docstring gives the command, what to expect, and on what machine.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from models.errors import ConfigError
from training.config import TrainConfig

SMOKE_IMAGES = 128


def finetune() -> TrainConfig:
    """MobileNetV2: a linear probe, then an epoch of every layer, earlier layers at lower rates.

    `loupe train --recipe finetune --data PHOTOS --out RUN`, with `--set epochs=5` for thousands of
    photos. The best epoch of both is kept. On 244 photos of ants and bees 96.5 % (96.1 to 96.7 over
    three seeds) in 48 s on two CPU cores: benchmarks/train_hymenoptera.py.
    """
    return TrainConfig(
        network="mobilenet_v2",
        weights="default",
        probe_epochs=30,
        probe_learning_rate=5e-3,
        epochs=1,
        batch_size=32,
        learning_rate=1e-4,
        layer_decay=0.85,
        freeze_statistics=True,
    )


def linear_probe() -> TrainConfig:
    """A new head on features that are computed once.

    `loupe train --recipe linear_probe --data PHOTOS --out RUN`. On 244 photos of ants and bees
    96.3 % (96.1 to 96.7 over three seeds), with 20 s of CPU time on two cores.
    """
    return TrainConfig(
        network="mobilenet_v2",
        weights="default",
        probe_epochs=50,
        probe_learning_rate=5e-3,
        epochs=0,
        batch_size=32,
    )


def from_scratch() -> TrainConfig:
    """ResNet-18 from random weights, for images that resemble no photo.

    `loupe train --recipe from_scratch --data IMAGES --out RUN`. It needs hundreds of images a
    class. Not measured yet, and so in no guide.
    """
    return TrainConfig(
        network="resnet18",
        weights="none",
        epochs=100,
        batch_size=64,
        learning_rate=1e-3,
        crop_scale_min=0.25,
        augment="trivial",
        label_smoothing=0.1,
        ema_decay=0.999,
        patience=20,
    )


def quality() -> TrainConfig:
    """ResNet-50 by torchvision's modern recipe, for a GPU and days.

    `loupe train --recipe quality --data IMAGES --out RUN`. With the learning rate divided by
    eight for batches of 128 images instead of 1024, and bf16. Not
    measured yet. Source: torchvision, "How to train state-of-the-art models using TorchVision's
    latest primitives".
    """
    return TrainConfig(
        network="resnet50",
        weights="none",
        resize_size=232,
        epochs=600,
        batch_size=128,
        optimiser="sgd",
        learning_rate=0.0625,
        weight_decay=2e-5,
        warmup_share=5 / 600,
        label_smoothing=0.1,
        clip_norm=0.0,
        ema_decay=0.9999,
        crop_scale_min=0.08,
        augment="trivial",
        erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        precision="bf16",
        channels_last=True,
        decode_workers=8,
    )


def digits() -> TrainConfig:
    """ResNet-18 on scikit-learn's handwritten digits at 32x32.

    `loupe train --recipe digits --data digits --out RUN`. Accuracy on the 359 test images
    99.2 %, 99.2 % and 100.0 % with seeds 0, 1 and 2: mean 99.4 %. Under 40 s on two free CPU cores:
    benchmarks/first_light.py has the whole demo.
    """
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


def lenet5() -> TrainConfig:
    """LeNet-5 on scikit-learn's handwritten digits at 28x28.

    `loupe train --recipe lenet5 --data digits --out RUN`. Accuracy on the 359 test images
    99.4 %, 99.7 % and 100.0 % with seeds 0, 1 and 2: mean 99.7 %.
    Half a minute on two free CPU cores.
    """
    return TrainConfig(
        network="lenet5",
        weights="none",
        image_size=28,
        resize_size=28,
        epochs=30,
        batch_size=32,
        learning_rate=2e-3,
        crop_scale_min=0.7,
        horizontal_flip=False,
        label_smoothing=0.05,
    )


def edge() -> TrainConfig:
    """MobileNetV3-small, 1.5 million weights, that learns from a teacher and from the labels.

    The teacher is any package with the same classes: `loupe train --recipe edge --set
    teacher=artifacts/store/insects/1 --data PHOTOS --out RUN`. There are more epochs than in
    `finetune`: a student gets closer to its teacher with time. Not measured on photos yet.
    """
    return TrainConfig(
        network="mobilenet_v3_small",
        weights="default",
        probe_epochs=30,
        probe_learning_rate=5e-3,
        epochs=20,
        batch_size=32,
        learning_rate=5e-4,
        layer_decay=0.9,
        teacher="",
        distillation=0.7,
        mixup=0.2,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (finetune, linear_probe, from_scratch, quality, edge, digits, lenet5)
}


def recipe(name: str) -> TrainConfig:
    """The config of the recipe called *name*. Raises `ConfigError` with the valid names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown recipe {name!r}.{hint} Valid: {', '.join(RECIPES)}")
    return RECIPES[name]()


def smoke(config: TrainConfig) -> TrainConfig:
    """*config* shrunk to prove in under a minute on a CPU that it runs.

    The trained model is worth nothing.
    """
    size = min(config.image_size, 64)
    return dataclasses.replace(
        config,
        probe_epochs=min(config.probe_epochs, 2),
        epochs=min(config.epochs, 1),
        max_train_images=SMOKE_IMAGES,
        image_size=size,
        resize_size=size,
        batch_size=16,
        decode_workers=0,
    )
