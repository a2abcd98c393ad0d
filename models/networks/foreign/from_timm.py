"""timm's networks: names, what their weights need, and how they are built and filled.

timm is an extra, and is imported where it is needed. Its own downloading and unpickling are not
used: the Hub's client fetches files, and they are read as all weights are.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ConfigError
from models.networks.foreign.body import BodyNetwork
from models.networks.foreign.split import split

TIMM = "timm:"
INSTALL = "pip install 'loupe-vision[timm]'"


def timm_models() -> Any:  # Any: timm has no annotations that mypy could read
    """The module `timm.models`. Raises `ConfigError` with the command that installs it."""
    try:
        return importlib.import_module("timm.models")
    except ImportError as error:
        raise ConfigError(f"timm is not installed: {INSTALL}") from error


def bare(name: str) -> str:
    """The network's *name* as timm has it."""
    return name.removeprefix(TIMM)


def knows(name: str) -> bool:
    """Whether timm is installed and has a network of that name, without the prefix."""
    try:
        return name.partition(".")[0] in timm_models().list_models()
    except ConfigError:
        return False


def config(name: str) -> Any:  # Any: timm's PretrainedCfg
    """What timm knows of the network *name* and of its weights.

    A name may end in a tag, as `timm:resnet50.a1_in1k`. Raises `ConfigError` with the nearest
    names.
    """
    models, (network, _, tag) = timm_models(), bare(name).partition(".")
    known = models.list_models()
    if network not in known:
        near = difflib.get_close_matches(network, known, n=3)
        hint = f"did you mean {', '.join(TIMM + one for one in near)}?" if near else ""
        raise ConfigError(
            f"timm has no network {network!r}; {hint or f'`loupe networks {TIMM}*` lists them'}"
        )
    tags = [one.partition(".")[2] for one in models.list_pretrained(f"{network}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=1) or tags[:3]
        raise ConfigError(
            f"timm's {network} has no weights {tag!r}; valid: "
            + (", ".join(f"{TIMM}{network}.{one}" for one in near) or "none")
        )
    found = models.get_pretrained_cfg(bare(name))
    if found is None:
        raise ConfigError(f"timm does not say what images {network} takes; choose another network")
    return found


def has_weights(found: Any) -> bool:  # Any: timm's PretrainedCfg, or None
    """Whether there are weights to download for the network of *found*."""
    return found is not None and bool(found.hf_hub_id or found.url)


def build(name: str, num_classes: int, image_size: int) -> BodyNetwork:
    """The network *name* of timm with random weights, split into a body and a linear layer.

    Raises `ConfigError` if it takes no images of *image_size* pixels.
    """
    module = _create(name, num_classes, image_size)
    return split(module, num_classes=num_classes, image_size=image_size, name=name)


def _create(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    found = config(name)
    if found.fixed_input_size and image_size != found.input_size[-1]:
        options["img_size"] = image_size
    try:
        module: nn.Module = timm_models().create_model(
            bare(name), num_classes=num_classes, **options
        )
    except (TypeError, AssertionError, ValueError) as error:
        if "img_size" not in options:
            raise
        size = found.input_size[-1]
        raise ConfigError(
            f"network {name} cannot be built for images of {image_size}x{image_size} pixels"
            f" ({error}); its own are {size}x{size}"
        ) from error
    return module


def converted(name: str, state: dict[str, Tensor], *, image_size: int) -> dict[str, Tensor]:
    """*state*, in any layout of this network that timm reads, with the names that timm has now.

    Position embeddings are resampled for *image_size*. Raises `ConfigError` if it does not fit.
    """
    found = config(name)
    layer = found.classifier if isinstance(found.classifier, str) else None
    weight = state.get(f"{layer}.weight")
    classes = found.num_classes if weight is None and layer is None else _rows(weight)
    overlay = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0}
    overlay |= {"custom_load": False, "source": ""}
    with torch.random.fork_rng(devices=[]):
        try:
            module = _create(
                name, classes, image_size, pretrained=True, pretrained_cfg_overlay=overlay
            )
        except (RuntimeError, KeyError, AttributeError) as error:
            raise ConfigError(f"weights for {name} do not fit: {_shortened(error)}") from error
    return dict(module.state_dict())


def _rows(weight: Tensor | None) -> int:
    """Classes of a classification layer; 0 if there is none."""
    return 0 if weight is None else len(weight)


def _shortened(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[1:3] if len(lines) > 1 else lines)
    return text if len(text) <= 300 else f"{text[:300]} ..."
