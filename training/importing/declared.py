"""How a foreign model wants its images: what its author declares, and what that means to Loupe.

The geometry becomes the package's `preprocess`. Channel order, range, mean and deviation go into
the graph.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from models.atomic_files import storage_errors
from models.errors import ConfigError
from models.files import read_file
from models.package.manifest import PreprocessSpec, Rgb, Side, StrictRecord
from models.package.manifest_file import first_problem

Channels = Literal["rgb", "bgr", "grey"]
Layout = Literal["nchw", "nhwc", "nhw"]
USUAL_SHARE = 0.875
"""Side of the crop, as a share of the short side: 224 of 256."""
DEFAULT_SIZE = 224
Numbers = float | tuple[float, ...]
Rgb3 = tuple[float, float, float]


class Declared(StrictRecord):
    """What is known of a model's input. None: not said; the usual value stands for it."""

    size: Side | tuple[Side, Side] | None = None
    """Height and width of the input in pixels; one number for a square."""
    resize: Literal["shortest_side", "stretch", "letterbox"] | None = None
    resize_size: Side | None = None
    """Short side before the crop (`shortest_side`), or side of the square before it (`stretch`)."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None = None
    pad_colour: Rgb | None = None
    """RGB colour of the border of `letterbox`."""
    background: Rgb | None = None
    """RGB colour behind transparent pixels."""
    recompress: int | None = None
    """Quality of the JPEG that the model's own preprocessing makes of each image."""
    apply_exif_orientation: bool | None = None
    convert_icc: bool | None = None
    channels: Channels | None = None
    range: Literal["0..1", "0..255"] | None = None
    """Of the pixels before mean and deviation."""
    mean: Numbers | None = None
    """Subtracted, in units of `range` and in the order of `channels`."""
    std: Numbers | None = None
    """Divided by, after the mean."""
    layout: Layout | None = None
    """Order of the input's axes, where the graph leaves it open."""

    def over(self, other: Declared) -> Declared:
        """These values, and those of *other* where there are none."""
        return other.model_copy(update=self.model_dump(exclude_none=True))


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = MappingProxyType(
    {
        "imagenet": Declared(range="0..1", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "half": Declared(range="0..1", mean=0.5, std=0.5),
        "unit": Declared(range="0..1", mean=0.0, std=1.0),
        "raw": Declared(range="0..255", mean=0.0, std=1.0),
        "caffe": Declared(range="0..255", channels="bgr", mean=(103.939, 116.779, 123.68), std=1.0),
    }
)
"""Name -> how pixels are usually normalised: torchvision; TensorFlow and ViT; Ultralytics; networks
that rescale by themselves; Caffe and Keras' ResNet and VGG."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What the graph does to pixels of 0 to 255, channel by channel: multiply, then subtract."""

    channels: Channels
    multiply: tuple[float, ...]
    """In the order of `channels`."""
    subtract: tuple[float, ...]

    def in_words(self) -> str:
        """Such as `BGR of 0 to 255, less 104, 117, 123`."""
        most = 255 if max(self.multiply) > 0.5 else 1
        std = [1.0 / more / 255.0 * most for more in self.multiply]
        mean = [value * deviation for value, deviation in zip(self.subtract, std, strict=True)]
        less = f", less {_numbers(mean)}" if any(mean) else ""
        over = f", over {_numbers(std)}" if any(value != 1.0 for value in std) else ""
        return f"{self.channels.upper()} of 0 to {most}{less}{over}"

    def manifest_values(self) -> tuple[Rgb3, Rgb3]:
        """Mean and deviation in RGB order, in units of 0 to 1, as the manifest has them."""
        both = list(zip(self.subtract, self.multiply, strict=True))
        mean = [less / more / 255.0 for less, more in both]
        std = [1.0 / more / 255.0 for more in self.multiply]
        order = {"rgb": (0, 1, 2), "bgr": (2, 1, 0), "grey": (0, 0, 0)}[self.channels]
        first, second, third = order
        return (mean[first], mean[second], mean[third]), (std[first], std[second], std[third])


def read_declared(texts: Sequence[str]) -> Declared:
    """What *texts* say, later ones before earlier ones.

    Each is the name of a usual normalisation, FIELD=VALUE, or a TOML file. Raises `ConfigError`.
    """
    found = Declared()
    for text in texts:
        found = _read(text).over(found)
    return found


def _read(text: str) -> Declared:
    if text in USUAL:
        return USUAL[text]
    field, equals, value = text.partition("=")
    if equals:
        return _checked({field.strip(): _value(value.strip())}, origin=f"--preprocess {text}")
    path = Path(text)
    if not path.is_file():
        raise ConfigError(
            f"--preprocess {text}: neither a TOML file, nor FIELD=VALUE, nor one of"
            f" {', '.join(USUAL)}"
        )
    try:
        with storage_errors(path):
            content = read_file(path)
        return _checked(tomllib.loads(content.decode("utf-8-sig")), origin=str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _value(text: str) -> Any:  # Any: whatever TOML has
    """*text* as TOML has it; numbers with commas are a list, and other words are text."""
    written = f"[{text}]" if "," in text and not text.startswith("[") else text
    try:
        return tomllib.loads(f"it = {written}")["it"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(fields: dict[str, Any], *, origin: str) -> Declared:  # Any: whatever TOML has
    unknown = sorted(fields.keys() - Declared.model_fields.keys())
    if unknown:
        raise ConfigError(
            f"{origin}: there is no field {', '.join(unknown)}. Fields:"
            f" {', '.join(Declared.model_fields)}"
        )
    try:
        return Declared.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {first_problem(error, 'preprocess')}") from error


def preprocess_spec(declared: Declared) -> PreprocessSpec:
    """The geometry, as the manifest has it. Raises `ConfigError` for values that exclude others."""
    size = declared.size or DEFAULT_SIZE
    crop = (size, size) if isinstance(size, int) else size
    resize = declared.resize or "shortest_side"
    fields: dict[str, Any] = {"crop": crop, "resize": resize}  # Any: fields of several types
    if resize == "shortest_side":
        fields["resize_size"] = declared.resize_size or max(*crop, round(min(crop) / USUAL_SHARE))
    elif declared.resize_size is not None:
        fields["resize_size"] = max(declared.resize_size, *crop)
        fields["stretch_size"] = declared.resize_size
    else:
        fields["resize_size"] = max(crop)
    same = {"filter", "pad_colour", "background", "recompress", "apply_exif_orientation"}
    fields |= declared.model_dump(include={*same, "convert_icc"}, exclude_none=True)
    try:
        return PreprocessSpec.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"--preprocess: {first_problem(error, 'preprocess')}") from error


def normalisation(declared: Declared, *, channels: int) -> Normalisation:
    """What the graph does with the pixels, for a model that takes so many *channels*.

    Raises `ConfigError` where the two contradict each other.
    """
    order: Channels = declared.channels or ("grey" if channels == 1 else "rgb")
    if (order == "grey") != (channels == 1):
        raise ConfigError(
            f"--preprocess channels={order}, but the model takes {channels} channel"
            f"{'s' if channels > 1 else ''}; leave `channels` out, or say"
            f" {'grey' if channels == 1 else 'rgb or bgr'}"
        )
    unit = 1.0 if declared.range == "0..255" else 1.0 / 255.0
    mean = _spread(declared.mean or 0.0, channels, field="mean")
    std = _spread(1.0 if declared.std is None else declared.std, channels, field="std")
    if min(std) <= 0.0:
        raise ConfigError(f"--preprocess std={min(std):g}: expected numbers above 0")
    return Normalisation(
        channels=order,
        multiply=tuple(unit / deviation for deviation in std),
        subtract=tuple(value / deviation for value, deviation in zip(mean, std, strict=True)),
    )


def _numbers(values: Sequence[float]) -> str:
    """The different numbers of *values*: one, if they are all the same."""
    distinct = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:.4g}" for value in distinct)


def _spread(values: Numbers, channels: int, *, field: str) -> tuple[float, ...]:
    given = (values,) if isinstance(values, float) else values
    if len(given) not in (1, channels):
        raise ConfigError(
            f"--preprocess {field} has {len(given)} numbers, but the model takes {channels}"
            f" channel{'s' if channels > 1 else ''}; give one number, or one for each"
        )
    return given * channels if len(given) == 1 else given
