"""A network of one's own, by import path: `my_package.nets:Net`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from torch import nn

from models.errors import ConfigError
from models.networks.foreign.body import BodyNetwork
from models.networks.foreign.split import split

MUST_BE = (
    "it is called with num_classes=K and gives a torch.nn.Module that takes normalised float32"
    " [N,3,H,W], and gives logits [N,K] by a last torch.nn.Linear"
)
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_path(name: str) -> bool:
    """Whether *name* looks like an import path."""
    return _PATH.fullmatch(name) is not None


def build(name: str, num_classes: int, image_size: int) -> BodyNetwork:
    """The network at the import path *name*, split into a body and a linear layer.

    Raises `ConfigError` that says what it must be.
    """
    make = _imported(name)
    try:
        module = make(num_classes=num_classes)  # type: ignore[operator]  # anything may be there
    except TypeError as error:
        raise ConfigError(f"network {name} cannot be made: {error}; {MUST_BE}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"network {name} makes a {type(module).__name__}; {MUST_BE}")
    if next(module.parameters(), None) is None:
        raise ConfigError(f"network {name} has no parameters to train; {MUST_BE}")
    return split(module, num_classes=num_classes, image_size=image_size, name=name)


def _imported(name: str) -> object:
    path, _, attribute = name.partition(":")
    # `python script.py` looks in the script's folder, and the command `loupe` in none of yours.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"network {name}: there is no module {error.name!r} in {here} or among the installed"
            " packages"
        ) from error
    if not hasattr(module, attribute):
        found = ", ".join(
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        )
        raise ConfigError(
            f"network {name}: module {path} has no {attribute}; its networks: {found or 'none'}"
        )
    found_object: object = getattr(module, attribute)
    return found_object
