"""What a run is asked to do: frozen, checked, and recorded with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run. Make one with a recipe of `training.recipes`; change single fields with `replace_fields`."""

    network: str
    """Name in `models.architectures.catalogue`."""
    weights: str = "default"
    """`default` (torchvision's), `none` (random), or a weights file."""
    image_size: int = 224
    """Height and width that the network sees, in pixels; 16 to 1024."""
    resize_size: int = 256
    """Length of the shortest side before the centre crop of evaluation, in pixels; at least `image_size`."""
    epochs: int = 10
    """Passes over the training images; 1 or more."""
    batch_size: int = 32
    """Images in one step; 2 or more, because batch normalisation needs two."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW, after warm-up; above 0 to 10."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay of weights with two or more dimensions; 0 or more."""
    warmup_share: float = 0.1
    """Share of all steps in which the rate rises linearly from 0; then it falls as a cosine to 0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; 0 to 0.5."""
    freeze_features: bool = False
    """Train the head alone."""
    crop_scale_min: float = 0.5
    """Least share of a training image's area that a random crop keeps; 1 turns random crops off."""
    horizontal_flip: bool = True
    """Mirror half of the training images; off where left and right differ, as in digits."""
    convert_icc: bool = False
    """Convert images with a colour profile to sRGB, in training and ever after; for sources of mixed profiles, at 2 ms for each such image."""
    max_train_images: int = 0
    """Use at most this many training images, as evenly over the classes as can be; 0 for all, or 2 or more."""
    seed: int = 0
    """Seeds weights, order and augmentation."""
    decode_workers: int = 0
    """Processes that decode training images; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        _require(16 <= self.image_size <= 1024, "image_size", self.image_size, "16 to 1024")
        _require(self.image_size <= self.resize_size <= 8192, "resize_size", self.resize_size, f"image_size ({self.image_size}) to 8192")
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        _require(0.0 < self.learning_rate <= 10.0, "learning_rate", self.learning_rate, "above 0 to 10")
        _require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "0 or more")
        _require(0.0 <= self.warmup_share < 1.0, "warmup_share", self.warmup_share, "0 to below 1")
        _require(0.0 <= self.label_smoothing <= 0.5, "label_smoothing", self.label_smoothing, "0 to 0.5")
        _require(0.0 < self.crop_scale_min <= 1.0, "crop_scale_min", self.crop_scale_min, "above 0 to 1")
        _require(self.max_train_images == 0 or self.max_train_images >= 2, "max_train_images", self.max_train_images, "0, or 2 or more")
        _require(0 <= self.decode_workers <= 64, "decode_workers", self.decode_workers, "0 to 64")

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def config_from_json(text: str, *, origin: str) -> TrainConfig:
    """The config that `to_json` wrote. Raises `ConfigError`."""
    try:
        return TrainConfig(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: not a run's configuration: {error}") from error


def replace_fields(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """*config* with each `field=value` applied. Raises `ConfigError` naming the field and what it may be."""
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    changes = dict(_assignment(text, kinds) for text in assignments)
    return dataclasses.replace(config, **changes)


def _assignment(text: str, kinds: dict[str, Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected field=value")
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"fields: {', '.join(kinds)}"
        raise ConfigError(f"--set {text}: no field {name}; {hint}")
    return name, _parse(name, value, str(kinds[name]))


def _parse(name: str, value: str, kind: str) -> Any:
    if kind == "str":
        return value
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"--set {name}={value}: expected true or false")
        return value.lower() == "true"
    try:
        return int(value) if kind == "int" else float(value)
    except ValueError as error:
        raise ConfigError(f"--set {name}={value}: expected {'a whole number' if kind == 'int' else 'a number'}") from error


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value}; expected {expected}")
