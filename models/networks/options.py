"""Names of networks with options, such as `simple_cnn,norm=group,widths=16-32`: what the options
are, and that they make sense.

Free of torch, so that a configuration is checked before torch is imported. The name is all that a
run and a manifest record, and it needs no quotes in a shell or a path.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from models.errors import ConfigError

SIMPLE_CNN = "simple_cnn"
GROUPS = 8
"""Groups of group normalisation, so every width is a multiple of it."""

Norm = Literal["batch", "layer", "instance", "group", "none"]
ActivationName = Literal["relu", "leaky_relu", "elu", "gelu"]
Downsampling = Literal["max", "average", "strided"]
Padding = Literal["zeros", "reflect", "replicate", "valid"]
Pooling = Literal["average", "flatten"]
CHOICES: Mapping[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "activation": get_args(ActivationName),
    "downsampling": get_args(Downsampling),
    "padding": get_args(Padding),
    "pooling": get_args(Pooling),
}


@dataclass(frozen=True, kw_only=True)
class SimpleCnnConfig:
    """A plain CNN whose parts can be exchanged one at a time, and so compared."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Filters of each block, joined by `-` in a name; 1 to 6 blocks, multiples of 8 up to 1024. Each block halves height and width."""
    kernel: int = 3
    """Side of the filters in pixels: 1, 3, 5 or 7."""
    norm: Norm = "batch"
    """`batch`; `layer` (all channels and cells of an image), `instance` (each channel of an image alone), `group` (8 groups of channels); `none`."""
    activation: ActivationName = "relu"
    """After each convolution, and in the dense head. `leaky_relu` has a slope of 0.01 below 0."""
    downsampling: Downsampling = "max"
    """2x2 pooling by `max` or `average`, or `strided`: the convolution itself takes every second pixel."""
    padding: Padding = "zeros"
    """What surrounds the image so that a convolution keeps its size; `valid`: nothing, and it shrinks by kernel - 1."""
    pooling: Pooling = "average"
    """`average`: the mean over all cells. `flatten`: the dense head sees where something is, on 4x4 cells whatever the image size."""
    units: int = 128
    """Width of the dense layer before the last; 0 to 4096, 0 for none."""
    dropout: float = 0.2
    """Share of the inputs of the last layer that training drops; 0 to below 1."""

    def __post_init__(self) -> None:
        shown = "-".join(map(str, self.widths))
        fits = 1 <= len(self.widths) <= 6 and all(
            GROUPS <= width <= 1024 and width % GROUPS == 0 for width in self.widths
        )
        _require(fits, "widths", shown, "1 to 6 multiples of 8 up to 1024, such as 32-64-128")
        _require(self.kernel in (1, 3, 5, 7), "kernel", self.kernel, "1, 3, 5 or 7")
        for name, choices in CHOICES.items():
            _require(
                getattr(self, name) in choices, name, getattr(self, name), " or ".join(choices)
            )
        _require(0 <= self.units <= 4096, "units", self.units, "0 to 4096")
        _require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "0 to below 1")

    @property
    def smallest_size(self) -> int:
        """Least height and width of an image, in pixels, that leaves a cell after the last block,
        and anything for padding to mirror.
        """
        return next(size for size in range(1, 2048) if self._fits(size))

    def _fits(self, size: int) -> bool:
        reach = self.kernel // 2
        stride = 2 if self.downsampling == "strided" else 1
        for _ in self.widths:
            if self.padding == "reflect" and size <= reach:
                return False
            padded = size if self.padding == "valid" else size + 2 * reach
            size = (padded - self.kernel) // stride + 1
            # Of a single value there is no variance.
            if size < (2 if self.norm == "instance" else 1):
                return False
            size = size if stride == 2 else size // 2
        return size >= 1


def split_name(network: str) -> tuple[str, dict[str, str]]:
    """`simple_cnn,norm=group` -> (`simple_cnn`, {`norm`: `group`}).

    Raises `ConfigError` for an option that is not key=value.
    """
    name, *parts = network.split(",")
    options = {}
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
    known = [field.name for field in dataclasses.fields(SimpleCnnConfig)]
    values: dict[
        str, Any
    ] = {}  # Any: each field has its own type, checked by `_typed` and `__post_init__`
    for key, text in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"{SIMPLE_CNN} has no option {key!r}.{hint} Valid: {', '.join(known)}"
            )
        values[key] = _typed(key, text)
    return SimpleCnnConfig(**values)


def check_options(network: str) -> None:
    """Raises `ConfigError` if the options in the name *network* make no sense; the bare name is the
    catalogue's to judge.
    """
    _, options = split_name(network)
    simple_cnn_config(options)


def with_option(network: str, key: str, value: str) -> str:
    """The name *network* with one option changed: those that differ from the defaults, in the order
    of the fields.
    """
    name, options = split_name(network)
    if name != SIMPLE_CNN:
        raise ConfigError(
            f"network.{key}={value}: network {name} takes no options; only {SIMPLE_CNN} does"
        )
    config, default = simple_cnn_config({**options, key: value}), SimpleCnnConfig()
    changed = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(default, field.name)
    ]
    return ",".join([name, *(f"{field}={_text(getattr(config, field))}" for field in changed)])


def _typed(key: str, text: str) -> object:
    try:
        if key == "widths":
            return tuple(int(width) for width in text.split("-"))
        if key in ("kernel", "units"):
            return int(text)
        return float(text) if key == "dropout" else text
    except ValueError as error:
        expected = {"widths": "whole numbers joined by -", "dropout": "a number"}.get(
            key, "a whole number"
        )
        raise ConfigError(f"{SIMPLE_CNN}: {key} is {text}; expected {expected}") from error


def _text(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{SIMPLE_CNN}: {name} is {value}; expected {expected}")
