"""Pretrained weights: torchvision's, timm's, from a file, or none. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import ConfigError
from models.networks.catalogue import Entry, build, entry
from models.networks.foreign import from_timm
from models.networks.foreign.body import BodyNetwork
from models.networks.foreign.hub import checkpoint_of
from models.networks.inputs import Inputs
from models.networks.network import Network
from models.networks.vision import WeightsEnum

BATCH_COUNT = ".num_batches_tracked"
"""Counter of batch normalisation, which torchvision's files of ResNet-18 and -34 do not have."""
HEAD = "head.linear."
"""The classification layer: the only part of the weights that may not fit the network."""
WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model_state_dict", "model", "net")
"""Keys under which training scripts keep a state, in the order in which they are looked for."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where a network's weights came from."""

    kind: Literal["torchvision", "timm", "file", "none"]
    identifier: str
    sha256: str | None
    head: bool
    """Whether the classification layer came with them. Otherwise it is new."""


def cached(name: str) -> bool:
    """Whether torchvision's weights of network *name* are on this machine already."""
    found = entry(name)
    return found.weights is not None and _checkpoint(found.weights).is_file()


def load_weights(
    network: Network, name: str, weights: str, *, image_size: int | None = None
) -> LoadedWeights:
    """Fill *network*, built as *name* for *image_size*, with *weights*.

    *weights* is `none`, `default` (the best published), a name such as `IMAGENET1K_V1`, or a file.
    Published ones are downloaded once. A file is safetensors, or a `.pth` with nothing but tensors,
    with the parameter names of torchvision, timm or the module itself. The classification layer is
    loaded if it has as many classes. Raises `ConfigError` if the weights cannot be downloaded or
    read, or do not fit.
    """
    if weights == "none":
        return LoadedWeights("none", "random initialisation", None, head=False)
    found = entry(name)
    path, kind, identifier = _located(found, name, weights)
    state = _named_as(network, _read(path), found, name, image_size)
    head = _fill(network, state, origin=f"{identifier} for {name}")
    return LoadedWeights(kind, identifier, hashlib.sha256(path.read_bytes()).hexdigest(), head=head)


def whole_network(
    name: str, weights: str = "default", *, image_size: int | None = None
) -> tuple[Network, Inputs]:
    """The network *name* with *weights* and their own classes, and what images they take.

    *weights* are as in `load_weights`. Raises `ConfigError` if they have no classification layer.
    """
    found = entry(name)
    size = image_size or found.inputs(weights).image_size
    path, _, identifier = _located(found, name, weights)
    read = _read(path)
    state = _named_as(build(name, num_classes=2, image_size=size), read, found, name, size)
    rows = state.get(f"{HEAD}weight")
    if rows is None:
        raise ConfigError(
            f"weights {identifier} have no classification layer that {name} could keep; train a new"
            " one with `loupe train --recipe linear_probe`"
        )
    network = build(name, num_classes=len(rows), image_size=size)
    _fill(network, state, origin=f"{identifier} for {name}")
    return network.eval(), found.inputs(weights)


def _located(
    found: Entry, name: str, weights: str
) -> tuple[Path, Literal["torchvision", "timm", "file"], str]:
    """The file of *weights*, downloaded if need be, its kind, and what to call it."""
    if found.timm is not None and weights == "default":
        path, identifier = checkpoint_of(found.timm, name)
        return path, "timm", identifier
    published = _published(found, name, weights)
    if published is None:
        return Path(weights), "file", Path(weights).name
    return _download(published, name), "torchvision", str(published)


def _named_as(
    network: Network, state: dict[str, Tensor], found: Entry, name: str, image_size: int | None
) -> dict[str, Tensor]:
    """*state* under the parameter names of *network*, which is *found* under *name*."""
    if not isinstance(network, BodyNetwork):
        return _renamed(state, found)
    own = all(key.startswith(("features.", HEAD)) for key in state)
    if found.timm is not None and not own:
        size = image_size or found.usual_size
        state = from_timm.converted(name, state, image_size=size)
    return network.renamed(state)


def _published(found: Entry, name: str, weights: str) -> WeightsEnum | None:
    """Torchvision's weights of that name; None if *weights* is a file.

    Raises `ConfigError` for those that have no classification layers.
    """
    if found.weights is None:
        if weights == "default":
            raise ConfigError(
                f"there are no published weights for {name}; train from scratch with weights"
                " none, or name a weights file"
            )
        return None
    if weights == "default":
        return found.weights
    members = type(found.weights).__members__
    if weights not in members:
        return None
    if members[weights].meta.get("categories") is None:
        whole = [key for key, member in members.items() if member.meta.get("categories")]
        raise ConfigError(
            f"weights {weights} of {name} are of features alone, without the layers after them;"
            f" valid: {', '.join(whole)}"
        )
    return members[weights]


def _checkpoint(weights: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def _download(weights: WeightsEnum, name: str) -> Path:
    path = _checkpoint(weights)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # torchvision's file names end in the first digits of their SHA-256.
        prefix = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=prefix)
        except (URLError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"weights of {name} cannot be downloaded from {weights.url}: {error}. Without a"
                f" network, put the file at {path}, name a weights file, or train from scratch with"
                " weights none"
            ) from error
    return path


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(
            f"weights file {path} does not exist; expected `default`, `none`, a name such as"
            " IMAGENET1K_V1, or a .safetensors or .pth file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch's own message ends in advice to unpickle the file after all.
        raise ConfigError(
            f"weights file {path} cannot be read: it holds more than tensors, or is damaged."
            " Nothing is unpickled here: save `model.state_dict()` alone, best as .safetensors"
        ) from error
    except Exception as error:
        raise ConfigError(f"weights file {path} cannot be read: {error}") from error
    loaded = _unwrapped(loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise ConfigError(
            f"weights file {path} holds no plain mapping of parameter names to tensors; save"
            " `model.state_dict()` alone"
        )
    return loaded


def state_inside(loaded: object) -> object:
    """The state inside a training script's checkpoint; the moving average is preferred."""
    while isinstance(loaded, Mapping) and (key := next((k for k in WRAPPERS if k in loaded), None)):
        loaded = loaded[key]
    return loaded


def _unwrapped(loaded: object) -> object:
    """The state inside a training script's checkpoint, without the prefix of a parallel module."""
    loaded = state_inside(loaded)
    if isinstance(loaded, dict) and all(str(key).startswith("module.") for key in loaded):
        return {key.removeprefix("module."): value for key, value in loaded.items()}
    return loaded


def _renamed(state: dict[str, Tensor], found: Entry) -> dict[str, Tensor]:
    """*state* under our parameter names; a state that already has them stays as it is."""
    if any(key.startswith(HEAD) for key in state):
        return state
    return {
        _rename(key, found): value
        for key, value in state.items()
        if found.dropped is None or not re.search(found.dropped, key)
    }


def _rename(key: str, found: Entry) -> str:
    pattern = next((theirs for theirs in found.renames if re.search(theirs, key)), "")
    return re.sub(pattern, found.renames.get(pattern, ""), key, count=1)


def _fill(network: Network, state: dict[str, Tensor], *, origin: str) -> bool:
    """Load *state* into *network*; returns whether it had a fitting classification layer.

    Raises `ConfigError` with the keys that differ.
    """
    expected = network.state_dict()
    state = {key: value for key, value in expected.items() if key.endswith(BATCH_COUNT)} | state
    head = [key for key in expected if key.startswith(HEAD)]
    has_head = all(key in state and state[key].shape == expected[key].shape for key in head)
    if not has_head:
        state |= {key: expected[key] for key in head}
    both = expected.keys() & state.keys()
    differences = {
        "missing": expected.keys() - both,
        "not of this network": state.keys() - both,
        "of another shape": {key for key in both if expected[key].shape != state[key].shape},
    }
    parts = [_some(what, sorted(keys)) for what, keys in differences.items() if keys]
    if parts:
        raise ConfigError(f"weights {origin} do not fit: {'; '.join(parts)}")
    network.load_state_dict(state)
    return has_head


def _some(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{more})"
