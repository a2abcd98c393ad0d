"""What images a set of weights was trained on: size, crop, filter and normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from models.networks.vision import WeightsEnum

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Rgb = tuple[float, float, float]
Resize = Literal["shortest_side", "stretch", "letterbox"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a photo becomes what a network takes. The defaults serve random weights."""

    image_size: int = 224
    """Height and width, in pixels."""
    crop_share: float = 0.875
    """Image size over the shortest side before the crop; above 0 to 1."""
    resize: Resize = "shortest_side"
    filter: Filter = "bilinear"
    mean: Rgb = IMAGENET_MEAN
    """Of red, green and blue, in units of 0 to 1."""
    std: Rgb = IMAGENET_STD

    def resize_size(self, image_size: int) -> int:
        """The shortest side, in pixels, of which a crop of *image_size* is the usual share.

        Source: timm rounds down. Sizes that follow from two whole numbers come out exact.
        """
        return max(image_size, math.floor(image_size / self.crop_share + 1e-6))


def inputs_of_torchvision(weights: WeightsEnum) -> Inputs:
    """What torchvision's own evaluation transform of *weights* does."""
    transforms: Any = weights.transforms()  # Any: a partial of a class without annotations
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return Inputs(
        image_size=size,
        crop_share=size / resized,
        filter=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def inputs_of_timm(found: Any) -> Inputs:  # Any: timm has no annotations that mypy could read
    """What timm's `PretrainedCfg` *found* says.

    timm's `squash` stretches, and its `border` pads to a square: `letterbox`. Its few networks that
    squash to a larger square and crop are stretched to the crop itself.
    """
    modes: dict[str, Resize] = {"squash": "stretch", "border": "letterbox"}
    filters = {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"}
    return Inputs(
        image_size=found.input_size[-1],
        crop_share=min(1.0, found.crop_pct),
        resize=modes.get(found.crop_mode, "shortest_side"),
        filter=cast("Filter", found.interpolation if found.interpolation in filters else "bicubic"),
        mean=_rgb(found.mean),
        std=_rgb(found.std),
    )


def _rgb(values: tuple[float, ...]) -> Rgb:
    red, green, blue = values
    return (red, green, blue)
