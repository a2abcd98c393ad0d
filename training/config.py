"""What a run is asked to do: frozen, checked, and recorded with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.errors import ConfigError
from models.files import parse_json
from models.networks.options import check_options, with_option
from models.package.manifest import LIMITS, ImageLimits

CHOICES = {
    "optimiser": ("adamw", "sgd"),
    "augment": ("none", "trivial", "rand"),
    "precision": ("fp32", "bf16", "fp16"),
}
"""Field -> its valid values."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run.

    Make one with a recipe of `training.recipes`; change single fields with `replace_fields`.
    """

    network: str
    """Name in `models.networks.catalogue`. `simple_cnn` takes options behind it, `simple_cnn,norm=group`, which
    `--set network.norm=group` changes one by one; they are the fields of `models.networks.options.SimpleCnnConfig`."""
    weights: str = "default"
    """`default` (torchvision's best), a name in its enum such as `IMAGENET1K_V1`, `none` (random), or a weights file."""
    image_size: int = 224
    """Height and width that the network sees, in pixels; 16 to 1024."""
    resize_size: int = 256
    """Length of the shortest side before the centre crop of evaluation, in pixels; at least `image_size`."""
    probe_epochs: int = 0
    """Passes of the head alone over features of the training images that are computed once, in evaluation's preprocessing, before
    `epochs` begin; 0 for none. They are kept in memory: 4 bytes a feature and image, and again for the mirrored images of
    `horizontal_flip`, so 1 GB for 100,000 images of MobileNetV2."""
    probe_learning_rate: float = 1e-3
    """Peak rate of the probe epochs; above 0 to 10."""
    epochs: int = 10
    """Passes over the augmented training images, from the best probe where there is one; 1 or more, or 0 for probe epochs alone."""
    batch_size: int = 32
    """Images in one step of all processes together; 2 or more, because batch normalisation needs two. 0: what fits into the memory of each
    GPU, up to 1024 on each, found by trying; on a CPU 32."""
    learning_rate: float = 1e-3
    """Peak rate, after warm-up; above 0 to 10."""
    layer_decay: float = 1.0
    """Factor on the rate from each stage of the features to the one before it; above 0 to 1. The head has the whole rate, and the
    last stage the first factor. Stages are the modules directly below `features` that have parameters."""
    optimiser: str = "adamw"
    """`adamw`, or `sgd` with Nesterov's momentum of 0.9."""
    weight_decay: float = 0.05
    """Weight decay of weights with two or more dimensions, decoupled in AdamW; 0 or more."""
    warmup_share: float = 0.1
    """Share of all steps in which the rate rises linearly from 0; then it falls as a cosine to 0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; 0 to 0.5."""
    class_weights: bool = False
    """Weigh the loss of each class by the inverse of its share of the training images; the mean over images stays 1."""
    balanced_sampling: bool = False
    """Draw training images with replacement, each class as often as any other."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all parameters together; above 0, or 0 for no limit."""
    accumulate: int = 1
    """Batches whose gradients make one step; 1 or more."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights at each step, which is then what is judged and kept; 0 for none, to below 1. It
    begins lower, at (1 + steps) / (10 + steps), so that short runs forget their start."""
    patience: int = 0
    """End the run after so many `epochs` without a better validation accuracy; 0 for never."""
    freeze: str = "none"
    """Parts that are not trained: `none`, `features`, or modules directly below `features`, such as `conv1,bn1,layer1`, where
    `0..13` stands for all from the first to the last. Frozen parts keep their batch statistics too."""
    freeze_statistics: bool = False
    """Keep the mean and variance of every batch normalisation; for few images, which give poor statistics."""
    crop_scale_min: float = 0.5
    """Least share of a training image's area that a random crop keeps; 1 turns random crops off."""
    horizontal_flip: bool = True
    """Mirror half of the training images; off where left and right differ, as in digits."""
    augment: str = "none"
    """Further changes of colour and shape: `none`, `trivial` (TrivialAugment), or `rand` (RandAugment)."""
    erasing: float = 0.0
    """Share of training images with a random rectangle painted in ImageNet's mean colour; 0 to 1."""
    mixup: float = 0.0
    """Alpha of the beta distribution that mixes two images and labels; 0 for none, to 10."""
    cutmix: float = 0.0
    """Alpha of the beta distribution that sizes a patch of another image; 0 for none, to 10. With `mixup`, each batch gets one of both."""
    convert_icc: bool = False
    """Convert images with a colour profile to sRGB, in training and ever after; for sources of mixed profiles, at 2 ms for each such image."""
    max_unreadable_share: float = 0.05
    """Images that cannot be read are left out, counted and listed; if they are a greater share of all, 0 to below 1, the run
    does not begin, or ends if they break while it goes on."""
    max_pixels: int = LIMITS.max_pixels
    """Most pixels of one image, width times height; an image with more counts as unreadable. 1 or more."""
    max_side: int = LIMITS.max_side
    """Longest side of an image in pixels; 1 or more."""
    max_decode_bytes: int = LIMITS.max_decode_bytes
    """Most memory for decoding one image, as estimated from its header; 1 or more. Each decoding thread or process may take as much."""
    max_train_images: int = 0
    """Use at most this many training images, as evenly over the classes as can be; 0 for all, or 2 or more."""
    precision: str = "fp32"
    """Arithmetic of `epochs`: `fp32`, or mixed with `bf16` or `fp16`, the latter with a scaled loss."""
    channels_last: bool = False
    """Keep pixels and weights in the order NHWC: faster with mixed precision on a GPU."""
    compile: bool = False
    """Compile the network with `torch.compile` for `epochs`: minutes at the start, then faster steps on a GPU. It pays in long runs there,
    and hardly ever on a CPU; benchmarks/gpu_train.py measures both. It needs a C++ compiler."""
    teacher: str = "none"
    """`none`, or the folder of a model package with the same classes, whose answers `epochs` learn from too; the probe learns from labels
    alone. Empty in recipes that want one to be named."""
    distillation: float = 0.5
    """Share of the loss that comes from the teacher, where there is one; above 0 to 1."""
    distillation_temperature: float = 2.0
    """What logits of both are divided by before they are compared: the higher, the more the unlikely classes count; above 0 to 20."""
    seed: int = 0
    """Seeds weights, order and augmentation."""
    decode_workers: int = 0
    """Processes that decode training images; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        check_options(self.network)
        _require(16 <= self.image_size <= 1024, "image_size", self.image_size, "16 to 1024")
        _require(
            self.image_size <= self.resize_size <= 8192,
            "resize_size",
            self.resize_size,
            f"image_size ({self.image_size}) to 8192",
        )
        self._check_learning()
        self._check_images()

    def _check_learning(self) -> None:
        probed = self.probe_epochs > 0
        _require(self.probe_epochs >= 0, "probe_epochs", self.probe_epochs, "0 or more")
        _require(
            self.epochs >= (0 if probed else 1),
            "epochs",
            self.epochs,
            "0 or more" if probed else "1 or more",
        )
        _require(
            self.batch_size >= 2 or self.batch_size == 0,
            "batch_size",
            self.batch_size,
            "2 or more, or 0 for what fits",
        )
        _require(
            0.0 < self.learning_rate <= 10.0, "learning_rate", self.learning_rate, "above 0 to 10"
        )
        _require(
            0.0 < self.probe_learning_rate <= 10.0,
            "probe_learning_rate",
            self.probe_learning_rate,
            "above 0 to 10",
        )
        _require(0.0 < self.layer_decay <= 1.0, "layer_decay", self.layer_decay, "above 0 to 1")
        _require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "0 or more")
        _require(0.0 <= self.warmup_share < 1.0, "warmup_share", self.warmup_share, "0 to below 1")
        _require(
            0.0 <= self.label_smoothing <= 0.5, "label_smoothing", self.label_smoothing, "0 to 0.5"
        )
        _require(0.0 <= self.clip_norm < math.inf, "clip_norm", self.clip_norm, "0 or more")
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        _require(0.0 <= self.ema_decay < 1.0, "ema_decay", self.ema_decay, "0 to below 1")
        _require(self.patience >= 0, "patience", self.patience, "0 or more")
        self._check_teacher()
        for name, choices in CHOICES.items():
            _require(
                getattr(self, name) in choices, name, getattr(self, name), " or ".join(choices)
            )

    def _check_teacher(self) -> None:
        taught = self.teacher != "none"
        _require(
            self.epochs > 0 or not taught,
            "epochs",
            self.epochs,
            "1 or more with a teacher: the probe learns from labels alone",
        )
        _require(0.0 < self.distillation <= 1.0, "distillation", self.distillation, "above 0 to 1")
        _require(
            0.0 < self.distillation_temperature <= 20.0,
            "distillation_temperature",
            self.distillation_temperature,
            "above 0 to 20",
        )

    def _check_images(self) -> None:
        _require(
            0.0 < self.crop_scale_min <= 1.0, "crop_scale_min", self.crop_scale_min, "above 0 to 1"
        )
        _require(0.0 <= self.erasing <= 1.0, "erasing", self.erasing, "0 to 1")
        _require(0.0 <= self.mixup <= 10.0, "mixup", self.mixup, "0 to 10")
        _require(0.0 <= self.cutmix <= 10.0, "cutmix", self.cutmix, "0 to 10")
        _require(
            0.0 <= self.max_unreadable_share < 1.0,
            "max_unreadable_share",
            self.max_unreadable_share,
            "0 to below 1",
        )
        for name in ImageLimits._fields:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(
            self.max_train_images == 0 or self.max_train_images >= 2,
            "max_train_images",
            self.max_train_images,
            "0, or 2 or more",
        )
        _require(0 <= self.decode_workers <= 64, "decode_workers", self.decode_workers, "0 to 64")

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def config_from_json(text: str | bytes, *, origin: str) -> TrainConfig:
    """The config that `to_json` wrote. Raises `ConfigError`."""
    try:
        return TrainConfig(**parse_json(text))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: not a run's configuration: {error}") from error


def replace_fields(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """*config* with each `field=value`, or `network.option=value`, applied in order.

    Raises `ConfigError` naming the field and what it may be.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    changes: dict[str, Any] = {"network": config.network}
    for text in assignments:
        name, value = _assignment(text, kinds)
        option = name.removeprefix("network.")
        changes |= (
            {name: value}
            if option == name
            else {"network": with_option(changes["network"], option, value)}
        )
    return dataclasses.replace(config, **changes)


def _assignment(text: str, kinds: dict[str, Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected field=value")
    if name.startswith("network."):
        return name, value
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
        raise ConfigError(
            f"--set {name}={value}: expected {'a whole number' if kind == 'int' else 'a number'}"
        ) from error


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value}; expected {expected}")
