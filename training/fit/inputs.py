"""What a run does to its images: as its weights were trained, unless the configuration says."""

from __future__ import annotations

import dataclasses
from typing import Any

from models.networks.catalogue import entry
from models.networks.inputs import Inputs, Rgb
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import DEFAULT_DCT_MARGIN
from training.config import TrainConfig, rgb

BY_WEIGHTS = "weights"


def settled(config: TrainConfig) -> TrainConfig:
    """*config* with every field in numbers that it left to the weights.

    This is what a run records: another release of timm or torchvision changes no run. Raises
    `ConfigError` for an unknown network, or sizes that do not go together.
    """
    wanted = (config.resize, config.interpolation, config.mean, config.std)
    if config.image_size and config.resize_size and BY_WEIGHTS not in wanted:
        return config
    found = entry(config.network).inputs(config.weights)
    size = config.image_size or found.image_size
    chosen: dict[str, Any] = {  # Any: literals that the fields check
        "resize": found.resize,
        "interpolation": found.filter,
        "mean": _written(found.mean),
        "std": _written(found.std),
    }
    return dataclasses.replace(
        config,
        image_size=size,
        resize_size=config.resize_size or found.resize_size(size),
        **{name: value for name, value in chosen.items() if getattr(config, name) == BY_WEIGHTS},
    )


def spec_of(inputs: Inputs, image_size: int | None = None) -> PreprocessSpec:
    """How photos become what a network with these *inputs* takes, at its own size by default."""
    size = image_size or inputs.image_size
    return PreprocessSpec(
        resize=inputs.resize,
        resize_size=inputs.resize_size(size),
        crop=(size, size),
        filter=inputs.filter,
        dct_margin=DEFAULT_DCT_MARGIN,
    )


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """How the images of a run are prepared for evaluation, in the package and in the service."""
    config = settled(config)
    return PreprocessSpec.model_validate(
        {
            "resize": config.resize,
            "resize_size": config.resize_size,
            "crop": (config.image_size, config.image_size),
            "filter": config.interpolation,
            "convert_icc": config.convert_icc,
            "dct_margin": DEFAULT_DCT_MARGIN,
            "max_pixels": config.max_pixels,
            "max_side": config.max_side,
            "max_decode_bytes": config.max_decode_bytes,
        }
    )


def normalisation(config: TrainConfig) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of red, green and blue, in units of 0 to 1."""
    config = settled(config)
    return rgb(config.mean), rgb(config.std)


def _written(values: Rgb) -> str:
    return ",".join(f"{value:.9g}" for value in values)
