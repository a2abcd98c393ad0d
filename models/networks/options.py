"""Options in a network's name, such as `simple_cnn,norm=group,widths=16-32`, and their checks.

Free of torch, so that a configuration is checked before torch is imported. The name is all that a
run and a manifest record, and it needs no quotes in a shell or a path.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from models.errors import ConfigError

SIMPLE_CNN = "simple_cnn"
GROUPS = 8
"""Groups of group normalisation, so every width is a multiple of it."""

Norm = Literal["batch", "layer", "instance", "group", "none"]
ActivationName = Literal["relu", "leaky_relu", "elu", "gelu"]
Width = Annotated[int, Field(le=1024, gt=0, multiple_of=GROUPS)]


def _split(text: object) -> object:
    return text.split("-") if isinstance(text, str) else text


class SimpleCnnConfig(BaseModel):
    """A plain CNN whose parts can be exchanged one at a time, and so compared."""

    model_config = ConfigDict(frozen=True)

    widths: Annotated[
        tuple[Width, ...], Field(min_length=1, max_length=6), BeforeValidator(_split)
    ] = (32, 64, 128)
    """Filters of each block, joined by `-` in a name. Each block halves height and width."""
    kernel: Annotated[Literal[1, 3, 5, 7], BeforeValidator(int)] = 3
    """Side of the filters in pixels."""
    norm: Norm = "batch"
    """What is normalised together.

    `layer`: all channels and cells of an image. `instance`: each channel of an image. `group`: each
    of 8 groups of channels of an image.
    """
    activation: ActivationName = "relu"
    """After each convolution, and in the dense head. `leaky_relu` has a slope of 0.01 below 0."""
    downsampling: Literal["max", "average", "strided"] = "max"
    """2x2 pooling by `max` or `average`, or `strided`: the convolution takes every second pixel."""
    padding: Literal["zeros", "reflect", "replicate", "valid"] = "zeros"
    """What surrounds the image so that a convolution keeps its size.

    With `valid` there is nothing, and the image shrinks by kernel - 1.
    """
    pooling: Literal["average", "flatten"] = "average"
    """`average`: the mean over all cells. `flatten`: the dense head sees 4x4 cells."""
    units: Annotated[int, Field(ge=0, le=4096)] = 128
    """Width of the dense layer before the last; 0 for none."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the inputs of the last layer that training drops."""

    @property
    def smallest_size(self) -> int:
        """Least height and width of an image, in pixels, that leaves a cell after each block."""
        return next(size for size in range(1, 2048) if self._fits(size))

    def _fits(self, size: int) -> bool:
        reach = self.kernel // 2
        stride = 2 if self.downsampling == "strided" else 1
        for _ in self.widths:
            if self.padding == "reflect" and size <= reach:
                return False
            padded = size if self.padding == "valid" else size + 2 * reach
            size = (padded - self.kernel) // stride + 1
            # A single value has no variance.
            if size < (2 if self.norm == "instance" else 1):
                return False
            size = size if stride == 2 else size // 2
        return size >= 1


def split_name(network: str) -> tuple[str, dict[str, str]]:
    """`simple_cnn,norm=group` -> (`simple_cnn`, {`norm`: `group`}).

    Raises `ConfigError` for an option that is not key=value.
    """
    name, *parts = network.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"network {network}: expected options as {name},key=value,key=value, not {part!r}"
            )
        options[key] = value
    if options and name != SIMPLE_CNN:
        raise ConfigError(
            f"network {name} takes no options ({', '.join(options)}); only {SIMPLE_CNN} does"
        )
    return name, options


def simple_cnn_config(options: Mapping[str, str]) -> SimpleCnnConfig:
    """*options* as text, typed and checked; the defaults for the rest.

    Raises `ConfigError` with what is valid.
    """
    known = list(SimpleCnnConfig.model_fields)
    for key in options.keys() - known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{SIMPLE_CNN} has no option {key!r}.{hint} Valid: {', '.join(known)}")
    try:
        return SimpleCnnConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key, expected = str(first["loc"][0]), first["msg"].replace("Input should", "it should")
        raise ConfigError(f"{SIMPLE_CNN}: {key} is {options[key]}; {expected}") from error


def check_options(network: str) -> None:
    """Raise `ConfigError` if the options in the name *network* are wrong.

    The catalogue checks the bare name.
    """
    _, options = split_name(network)
    simple_cnn_config(options)


def with_option(network: str, key: str, value: str) -> str:
    """The name *network* with one option changed.

    It has the options that differ from the defaults, in the order of the fields.
    """
    name, options = split_name(network)
    if name != SIMPLE_CNN:
        raise ConfigError(
            f"network.{key}={value}: network {name} takes no options; only {SIMPLE_CNN} does"
        )
    changed = simple_cnn_config({**options, key: value}).model_dump(exclude_defaults=True)
    texts = {
        field: "-".join(map(str, changed[field])) if field == "widths" else changed[field]
        for field in changed
    }
    return ",".join([name, *(f"{field}={text}" for field, text in texts.items())])
