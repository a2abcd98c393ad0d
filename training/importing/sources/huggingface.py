"""Folders of Hugging Face's transformers: `config.json`, weights, `preprocessor_config.json`.

transformers builds the network; code that lies in the folder is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import ConfigError, ImportRefused
from models.files import read_file
from training.importing.declared import Declared
from training.importing.foreign import Foreign
from training.importing.labels import of_mapping
from training.importing.sources.onnx_model import sha256_of
from training.importing.sources.torch_weights import exported, torch_answers

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number, which `resample` is."""
CONVNEXT_STRETCHES_FROM = 384
"""From this side on ConvNeXt's preprocessing stretches. Source: `ConvNextImageProcessor`."""


class _Logits(nn.Module):
    """The network, giving its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits [N,K] for float32 [N,3,H,W]."""
        logits: torch.Tensor = self.network(pixel_values=pixels).logits
        return logits


def huggingface(folder: Path) -> Foreign:
    """The classifier in *folder*.

    Raises `ImportRefused` for other networks and weights, `ConfigError` without transformers.
    """
    config = _json(folder / CONFIG)
    kinds = config.get("architectures") or ["none"]
    if not str(kinds[0]).endswith("ForImageClassification"):
        raise ImportRefused(
            f"{folder} holds {kinds[0]}, expected an image classifier (...ForImageClassification):"
            " fine-tune it for classes first"
        )
    if not (folder / WEIGHTS).is_file():
        raise ImportRefused(
            f"{folder} has no {WEIGHTS}; nothing is unpickled here: save it again with"
            " `model.save_pretrained(folder, safe_serialization=True)`"
        )
    declared = _declared(folder, config)
    module = _Logits(_loaded(folder)).eval()
    size = declared.size or config.get("image_size") or 224
    side = (size, size) if isinstance(size, int) else size
    return Foreign(
        kind="huggingface",
        name=folder.resolve().name,
        network=str(kinds[0]).removesuffix("ForImageClassification"),
        encoded=exported(module, side, origin=str(folder)),
        sha256=sha256_of(folder / WEIGHTS),
        runtime="transformers",
        answers=torch_answers(module),
        declared=declared,
        labels=_labels(config, folder),
    )


def _loaded(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
        from transformers.utils.logging import disable_progress_bar
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{folder} is a folder of Hugging Face's, which needs transformers to build its"
            " network; `pip install transformers`"
        ) from error
    disable_progress_bar()
    try:
        network: nn.Module = AutoModelForImageClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no reason")
        raise ImportRefused(
            f"transformers cannot load {folder}: {first}; code in the folder is never run"
        ) from error
    return network.eval()


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...] | None:
    names = config.get("id2label")
    return of_mapping(names, origin=f"in {folder / CONFIG}") if names else None


def _declared(folder: Path, config: Mapping[str, Any]) -> Declared:
    """What `preprocessor_config.json` says; nothing if there is none."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Declared()
    how = _json(path)
    number = how.get("resample", 2)
    found = Declared(filter=FILTERS[number] if number in range(len(FILTERS)) else "bilinear")
    return _pixels(how).over(_geometry(how)).over(found)


def _pixels(how: Mapping[str, Any]) -> Declared:
    """Range, mean and deviation; `rescale_offset` takes 1 away after the scale."""
    factor = float(how.get("rescale_factor", 1.0 / 255.0)) if how.get("do_rescale", True) else 1.0
    normalises = how.get("do_normalize", True) and "image_mean" in how
    mean = [float(value) for value in (how["image_mean"] if normalises else (0.0,))]
    std = [float(value) for value in (how["image_std"] if normalises else (1.0,))]
    offset = 1.0 if how.get("rescale_offset") else 0.0
    # (x * factor - offset - mean) / std, in units of the pixels themselves.
    return Declared(
        range="0..255",
        mean=tuple((value + offset) / factor for value in mean),
        std=tuple(value / factor for value in std),
    )


def _geometry(how: Mapping[str, Any]) -> Declared:
    """Resize and crop."""
    size, crop = _sides(how.get("size")), _sides(how.get("crop_size"))
    if "crop_pct" in how and how["crop_pct"] and isinstance(size, int):
        if size >= CONVNEXT_STRETCHES_FROM:
            return Declared(size=size, resize="stretch")
        return Declared(
            size=size, resize="shortest_side", resize_size=int(size / float(how["crop_pct"]))
        )
    if isinstance(size, int):
        side = crop if how.get("do_center_crop", True) and crop else size
        short = crop if isinstance(crop, int) else None
        whole = max(size, short or 0)
        return Declared(size=side, resize="shortest_side", resize_size=whole)
    if how.get("do_center_crop") and isinstance(crop, tuple) and isinstance(size, tuple):
        if crop != size and size[0] == size[1]:
            return Declared(size=crop, resize="stretch", resize_size=size[0])
        return Declared(size=crop, resize="stretch")
    return Declared(size=size, resize="stretch") if size else Declared()


def _sides(given: Any) -> int | tuple[int, int] | None:  # Any: JSON
    """The short side as a number, height and width as a pair."""
    if isinstance(given, int):
        return given
    if isinstance(given, Mapping):
        if "shortest_edge" in given:
            return int(given["shortest_edge"])
        if "height" in given:
            return int(given["height"]), int(given["width"])
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path))
    except ValueError as error:
        raise ImportRefused(f"{path} is not JSON: {error}; copy the folder again") from error
    if not isinstance(found, dict):
        raise ImportRefused(f"{path} holds {type(found).__name__}, expected a JSON object")
    return found
