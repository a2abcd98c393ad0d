"""`TrainConfig`: what a run is asked to do. It is frozen, checked, and recorded with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from models.errors import ConfigError
from models.files import parse_json
from models.networks.options import check_options, with_option
from models.package.manifest import LIMITS

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Alpha = Annotated[float, Field(ge=0.0, le=10.0)]
ShareAboveZero = Annotated[float, Field(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is asked to do.

    Make one with a recipe of `training.recipes`; change single fields with `replace_fields`.
    """

    network: str
    """A name that `loupe networks` lists, such as `resnet18` or `timm:convnext_tiny`, or the import
    path of one's own: `my_package.nets:Net`. `simple_cnn` takes options behind it, as in
    `simple_cnn,norm=group`. `--set network.norm=group` changes one of them. They are the fields of
    `models.networks.options.SimpleCnnConfig`."""
    weights: str = "default"
    """`default` (the best published), a name in torchvision's enum such as `IMAGENET1K_V1`, `none`
    (random), or a weights file."""
    image_size: int = 0
    """Height and width that the network sees, in pixels; 16 to 1024, or 0 for the size that the
    weights were trained on."""
    resize_size: int = 0
    """Length of the shortest side before the centre crop of evaluation, in pixels; `image_size` to
    8192, or 0 for what leaves the share of the weights in the crop."""
    resize: Literal["weights", "shortest_side", "stretch", "letterbox"] = "weights"
    """How a photo gets the size of the network: `shortest_side` (then a centre crop), `stretch`,
    `letterbox`, or `weights`: as these were trained."""
    interpolation: Literal[
        "weights", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"
    ] = "weights"
    """Filter of the resize, in evaluation and augmentation; `weights`: as these were trained."""
    mean: str = "weights"
    """What is subtracted from pixels of 0 to 1: a number for red, green and blue, as
    `0.485,0.456,0.406`; `weights`: as these were trained."""
    std: str = "weights"
    """What the difference is divided by, likewise."""
    probe_epochs: Count = 0
    """Passes of the head alone over features of the training images, before `epochs` begin; 0 for
    none. The features are computed once, with the preprocessing of evaluation. They are kept in
    memory: 4 bytes a feature and image, and again for the mirrored images of `horizontal_flip`, so
    1 GB for 100,000 images of MobileNetV2."""
    probe_learning_rate: Rate = 1e-3
    """Peak rate of the probe epochs; above 0 to 10."""
    epochs: int = 10
    """Passes over the augmented training images, from the best probe if there is one; 1 or more, or
    0 for probe epochs alone."""
    batch_size: int = 32
    """Images in one step of all processes together; 2 or more, because batch normalisation needs
    two. 0: what fits into the memory of each GPU, up to 1024 on each, found by trying; on a CPU
    32."""
    learning_rate: Rate = 1e-3
    """Peak rate, after warm-up; above 0 to 10."""
    layer_decay: ShareAboveZero = 1.0
    """Factor on the rate from each stage of the features to the one before it; above 0 to 1. The
    head has the whole rate, and the last stage the first factor. Stages are the modules directly
    below `features` that have parameters."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """`adamw`, or `sgd` with Nesterov's momentum of 0.9."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight decay of weights with two or more dimensions, decoupled in AdamW; 0 or more."""
    warmup_share: ShareBelowOne = 0.1
    """Share of all steps in which the rate rises linearly from 0; then it falls as a cosine to
    0."""
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Share of the target spread over all classes; 0 to 0.5."""
    class_weights: bool = False
    """Weigh the loss of each class by the inverse of its share of the training images. The mean
    over images stays 1."""
    balanced_sampling: bool = False
    """Draw training images with replacement, each class as often as any other."""
    clip_norm: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Largest norm of the gradient of all parameters together; above 0, or 0 for no limit."""
    accumulate: AtLeastOne = 1
    """Batches whose gradients make one step; 1 or more."""
    ema_decay: ShareBelowOne = 0.0
    """Decay of a moving average of the weights at each step; 0 for none, to below 1. The average is
    then what is judged and kept. Its decay begins lower, at (1 + steps) / (10 + steps), so that
    short runs forget their start."""
    patience: Count = 0
    """End the run after so many `epochs` without a better validation accuracy; 0 for never."""
    freeze: str = "none"
    """Parts that are not trained: `none`, `features`, or modules directly below `features`, such as
    `conv1,bn1,layer1`. `0..13` names all from the first to the last. Frozen parts keep their batch
    statistics too."""
    freeze_statistics: bool = False
    """Keep the mean and variance of every batch normalisation: few images give poor statistics."""
    crop_scale_min: ShareAboveZero = 0.5
    """Least share of a training image's area that a random crop keeps; 1 turns random crops off."""
    horizontal_flip: bool = True
    """Mirror half of the training images; off where left and right differ, as in digits."""
    augment: Literal["none", "trivial", "rand"] = "none"
    """Further changes of colour and shape: `none`, `trivial` (TrivialAugment), or `rand`
    (RandAugment)."""
    erasing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of training images with a random rectangle painted in ImageNet's mean colour; 0 to
    1."""
    mixup: Alpha = 0.0
    """Alpha of the beta distribution that mixes two images and labels; 0 for none, to 10."""
    cutmix: Alpha = 0.0
    """Alpha of the beta distribution that sizes a patch of another image; 0 for none, to 10. With
    `mixup`, each batch gets one of both."""
    convert_icc: bool = False
    """Convert images with a colour profile to sRGB, in training and ever after. It is for sources
    of mixed profiles, and takes 2 ms for each such image."""
    max_unreadable_share: ShareBelowOne = 0.05
    """Images that cannot be read are left out, counted and listed. If they are a greater share of
    all, 0 to below 1, the run does not begin, or ends if they break during training."""
    max_pixels: AtLeastOne = LIMITS.max_pixels
    """Most pixels of one image, width times height; an image with more counts as unreadable. 1 or
    more."""
    max_side: AtLeastOne = LIMITS.max_side
    """Longest side of an image in pixels; 1 or more."""
    max_decode_bytes: AtLeastOne = LIMITS.max_decode_bytes
    """Most memory for decoding one image, as estimated from its header; 1 or more. Each decoding
    thread or process may take as much."""
    max_train_images: int = 0
    """Use at most this many training images, as evenly over the classes as possible; 0 for all, or
    2 or more."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of `epochs`: `fp32`, or mixed with `bf16` or `fp16`, the latter with a scaled
    loss."""
    channels_last: bool = False
    """Keep pixels and weights in the order NHWC: faster with mixed precision on a GPU."""
    compile: bool = False
    """Compile the network with `torch.compile` for `epochs`: minutes at the start, then faster
    steps on a GPU. It pays in long runs there, and hardly ever on a CPU; benchmarks/gpu_train.py
    measures both. It needs a C++ compiler."""
    teacher: str = "none"
    """`none`, or the folder of a model package with the same classes. `epochs` learn from its
    answers too; the probe learns from labels alone. Empty in recipes that want one to be named."""
    distillation: ShareAboveZero = 0.5
    """Share of the loss that comes from the teacher, if there is one; above 0 to 1."""
    distillation_temperature: Annotated[float, Field(gt=0.0, le=20.0)] = 2.0
    """What the logits of both are divided by before they are compared; above 0 to 20. The higher,
    the more the unlikely classes count."""
    seed: int = 0
    """Seeds weights, order and augmentation."""
    decode_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that decode training images; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        try:
            FIELDS.model_validate(vars(self))
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise ConfigError(
                f"{name} is {getattr(self, name)}; expected {_expected(SCHEMA[name])}"
            ) from error
        check_options(self.network)
        least_resize = f"image_size ({self.image_size})" if self.image_size else "16"
        least_epochs, probe_only = (0, "0 or more") if self.probe_epochs else (1, "1 or more")
        for valid, name, expected in (
            (
                self.image_size == 0 or 16 <= self.image_size <= 1024,
                "image_size",
                "16 to 1024, or 0 for that of the weights",
            ),
            (
                self.resize_size == 0 or self.image_size <= self.resize_size <= 8192,
                "resize_size",
                f"{least_resize} to 8192, or 0",
            ),
            (_is_rgb(self.mean, least=-math.inf), "mean", f"weights, or {THREE}"),
            (_is_rgb(self.std, least=0.0), "std", f"weights, or {THREE}, each above 0"),
            (self.epochs >= least_epochs, "epochs", probe_only),
            (
                self.epochs > 0 or self.teacher == "none",
                "epochs",
                "1 or more with a teacher: the probe learns from labels alone",
            ),
            (
                self.batch_size == 0 or self.batch_size >= 2,
                "batch_size",
                "2 or more, or 0 for what fits",
            ),
            (
                self.max_train_images == 0 or self.max_train_images >= 2,
                "max_train_images",
                "0, or 2 or more",
            ),
        ):
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


THREE = "three numbers as 0.485,0.456,0.406"
BEFORE_WEIGHTS_CHOSE = {
    "resize": "shortest_side",
    "interpolation": "bilinear",
    "mean": "0.485,0.456,0.406",
    "std": "0.229,0.224,0.225",
}
"""Of runs whose configuration does not have these fields."""


def rgb(text: str) -> tuple[float, float, float]:
    """The three numbers in *text*. Raises `ValueError` if there are not three."""
    red, green, blue = map(float, text.split(","))
    return red, green, blue


def _is_rgb(text: str, *, least: float) -> bool:
    try:
        return text == "weights" or all(least < value < math.inf for value in rgb(text))
    except ValueError:
        return False


FIELDS = create_model(  # type: ignore[call-overload]  # the fields are known at run time alone
    "Fields",
    __config__=ConfigDict(strict=True),
    **{
        name: (kind, ...) for name, kind in get_type_hints(TrainConfig, include_extras=True).items()
    },
)
"""Checks the type and the range of each field."""
SCHEMA: dict[str, dict[str, Any]] = FIELDS.model_json_schema()["properties"]
"""Field -> its JSON schema."""
PARSERS: dict[str, tuple[Callable[[str], object], str]] = {
    "integer": (int, "a whole number"),
    "number": (float, "a number"),
    "boolean": (lambda value: {"true": True, "false": False}[value.lower()], "true or false"),
    "string": (str, "text"),
}
"""Type in the schema -> what parses a value of `--set`, and what is expected."""


def _expected(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        return PARSERS[schema["type"]][1]
    low = (
        f"above {schema['exclusiveMinimum']:g}"
        if "exclusiveMinimum" in schema
        else f"{schema['minimum']:g}"
    )
    if "exclusiveMaximum" in schema:
        return f"{low} to below {schema['exclusiveMaximum']:g}"
    return f"{low} to {schema['maximum']:g}" if "maximum" in schema else f"{low} or more"


def config_from_json(text: str | bytes, *, origin: str) -> TrainConfig:
    """The config that `to_json` wrote. Raises `ConfigError`."""
    try:
        return TrainConfig(**(BEFORE_WEIGHTS_CHOSE | parse_json(text)))
    except (ValueError, TypeError, ConfigError) as error:
        raise ConfigError(f"{origin}: not a run's configuration: {error}") from error


def replace_fields(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """*config* with each `field=value`, or `network.option=value`, applied in order.

    Raises `ConfigError` naming the field and what it may be.
    """
    changes: dict[str, Any] = {"network": config.network}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected field=value")
        if name.startswith("network."):
            option = name.removeprefix("network.")
            changes["network"] = with_option(changes["network"], option, value)
            continue
        if name not in SCHEMA:
            near = difflib.get_close_matches(name, SCHEMA, n=1)
            hint = f"did you mean {near[0]}?" if near else f"fields: {', '.join(SCHEMA)}"
            raise ConfigError(f"--set {text}: no field {name}; {hint}")
        parse, expected = PARSERS[SCHEMA[name]["type"]]
        try:
            changes[name] = parse(value)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"--set {text}: expected {expected}") from error
    return dataclasses.replace(config, **changes)
