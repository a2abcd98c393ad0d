"""Entries of a Triton model repository whose model is ONNX."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from models.errors import ImportRefused
from models.files import read_file
from training.importing.foreign import Foreign
from training.importing.labels import read_labels
from training.importing.sources.onnx_model import onnx_model

CONFIG, MODEL = "config.pbtxt", "model.onnx"


def triton(folder: Path) -> Foreign:
    """The highest version in *folder*, with the labels that its configuration names.

    Raises `ImportRefused` for other kinds of models.
    """
    text = read_file(folder / CONFIG).decode("utf-8", "replace")
    kind = _field(text, "platform") or _field(text, "backend") or "onnxruntime"
    if "onnx" not in kind:
        raise ImportRefused(
            f"{folder} is a model for {kind}; Loupe imports those in ONNX: export the network that"
            " it was made from to ONNX"
        )
    name = _field(text, "default_model_filename") or MODEL
    versions = sorted(
        (path for path in folder.iterdir() if path.name.isdecimal() and (path / name).is_file()),
        key=lambda path: int(path.name),
    )
    if not versions:
        raise ImportRefused(f"{folder} has no version with {name}; expected {folder}/1/{name}")
    found = onnx_model(versions[-1] / name)
    labels = _field(text, "label_filename")
    return replace(
        found,
        kind="triton",
        name=f"{folder.resolve().name}/{versions[-1].name}/{name}",
        network=folder.resolve().name,
        labels=read_labels(folder / Path(labels).name) if labels else found.labels,
    )


def _field(text: str, name: str) -> str:
    """The first value of the text field *name* in a configuration; empty if there is none."""
    found = re.search(rf'\b{name}\s*:\s*"([^"]*)"', text)
    return found[1] if found else ""
