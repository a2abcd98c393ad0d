"""Every network that can be trained, with what is known of it without building it, and the rest.

Parameters and multiply-adds of torchvision's networks are torchvision's own figures. Those of all
others are counted on torch's `meta` device, which computes shapes and no numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from models.errors import ConfigError
from models.inspection.layers import layers_of
from models.networks.catalogue import Entry, build, entry, more_networks, networks
from models.networks.foreign.from_timm import TIMM, timm_models
from models.networks.torch_operations import IMAGE, operations_of_network

COUNTED = 30
"""Most networks that are counted: each takes a fraction of a second."""
MEASURED = Path(__file__).with_name("cpu_ms.json")
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What is known of a network; None where nothing is."""

    name: str
    parameters: int | None = None
    multiply_adds: int | None = None
    """For one image of `image_size`."""
    image_size: int
    interpolation: str
    licence: str | None = None
    """Of the published weights."""
    cpu_ms: float | None = None
    """CPU time of one image of `image_size`, as benchmarks/networks.py measured it."""


def list_networks(pattern: str | None = None) -> list[Listed]:
    """The networks that match *pattern*, with shell wildcards, or that have it in their names.

    Without one, all but timm's. Of up to `COUNTED` networks everything is counted. Raises
    `ConfigError` if none matches.
    """
    names = matching(pattern)
    if not names:
        raise ConfigError(f"no network matches {pattern!r}; `loupe networks` lists them")
    measured = measured_ms()
    count = len(names) <= COUNTED
    return [_listed(name, measured, count=count) for name in names]


def matching(pattern: str | None) -> list[str]:
    """The names that match *pattern*, as in `list_networks`."""
    names = [*networks(), *more_networks()]
    if pattern is None:
        return names
    if find_spec("timm") is not None or pattern.startswith(TIMM):
        names += [f"{TIMM}{name}" for name in timm_models().list_models()]
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, wild)]


def measured_ms() -> Mapping[str, float]:
    """Network -> milliseconds of CPU time for one image, as they were measured."""
    found: dict[str, float] = json.loads(MEASURED.read_bytes())["milliseconds"]
    return found


def _listed(name: str, measured: Mapping[str, float], *, count: bool) -> Listed:
    found = entry(name)
    inputs = found.inputs()
    listed = Listed(
        name=name,
        image_size=inputs.image_size,
        interpolation=inputs.filter,
        licence=_licence(found),
        cpu_ms=measured.get(name),
    )
    if found.weights is not None:
        meta = found.weights.meta
        return replace(
            listed, parameters=meta["num_params"], multiply_adds=round(meta["_ops"] * 1e9)
        )
    return _counted(listed) if count else listed


def _licence(found: Entry) -> str | None:
    if found.timm is not None:
        return str(found.timm.license) if found.timm.license else None
    if found.weights is None:
        return None
    # torchvision names a licence only where it is not its own: of the weights called SWAG.
    return "cc-by-nc-4.0" if "license" in found.weights.meta else "bsd-3-clause"


def _counted(listed: Listed) -> Listed:
    """*listed* with its parameters and multiply-adds; as it is where `meta` cannot run it."""
    size = listed.image_size
    try:
        with torch.device("meta"):
            network = build(listed.name, num_classes=CLASSES, image_size=size)
        layers = layers_of(operations_of_network(network, (size, size)), IMAGE)
    except (ConfigError, NotImplementedError, RuntimeError, ValueError, KeyError):
        return listed
    return replace(
        listed,
        parameters=sum(value.numel() for value in network.parameters()),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
    )


def rows(found: Iterable[Listed]) -> list[tuple[str, ...]]:
    """*found* as cells of a table."""
    return [
        (
            one.name,
            _short(one.parameters, 1e6, "M"),
            _short(one.multiply_adds, 1e9, "G"),
            str(one.image_size),
            "" if one.cpu_ms is None else f"{one.cpu_ms:.0f}",
            one.licence or "",
        )
        for one in found
    ]


def _short(value: int | None, unit: float, sign: str) -> str:
    if value is None:
        return ""
    scaled = value / unit
    return (
        f"{scaled:.0f} {sign}"
        if scaled >= 100
        else f"{scaled:.2g} {sign}"
        if (scaled < 1)
        else f"{scaled:.1f} {sign}"
    )


def record() -> dict[str, Any]:  # Any: JSON
    """The measurement behind `cpu_ms`: machine, versions, command."""
    found: dict[str, Any] = json.loads(MEASURED.read_bytes())
    return {key: value for key, value in found.items() if key != "milliseconds"}
