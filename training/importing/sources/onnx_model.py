"""ONNX files, also those of Ultralytics, which say more about themselves."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

from onnx import ModelProto

from models.errors import ImportRefused
from training.importing.declared import Declared
from training.importing.foreign import Foreign
from training.importing.labels import of_mapping
from training.importing.onnx_graph import read_onnx


def onnx_model(path: Path) -> Foreign:
    """The model in the ONNX file *path*. Raises `ImportRefused`."""
    model = read_onnx(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    by_ultralytics = (
        "ultralytics" in facts.get("description", "").lower() + facts.get("author", "").lower()
    )
    if by_ultralytics:
        return _of_ultralytics(model, facts, path)
    return Foreign(
        kind="onnx",
        name=path.name,
        network=path.stem,
        encoded=model.SerializeToString(),
        sha256=sha256_of(path),
    )


def _of_ultralytics(model: ModelProto, facts: dict[str, str], path: Path) -> Foreign:
    """A classification export, whose metadata has names and size.

    Its preprocessing is that of Ultralytics' `classify_transforms`: short side to the size, crop of
    the centre, pixels of 0 to 1 without mean and deviation.
    """
    task = facts.get("task", "classify")
    if task != "classify":
        raise ImportRefused(
            f"{path} is a model of Ultralytics for the task {task}; Loupe serves classifiers: take"
            " one whose name ends in -cls"
        )
    sizes, names = _literal(facts.get("imgsz")), _literal(facts.get("names"))
    declared = Declared(range="0..1", mean=0.0, std=1.0, resize="shortest_side")
    if isinstance(sizes, list) and len(sizes) == 2:
        declared = Declared(size=(sizes[0], sizes[1]), resize_size=min(sizes)).over(declared)
    return Foreign(
        kind="ultralytics",
        name=path.name,
        network=facts.get("description", path.stem).split(" trained on")[0],
        encoded=model.SerializeToString(),
        sha256=sha256_of(path),
        declared=declared,
        labels=of_mapping(names, origin=f"in {path}") if isinstance(names, dict) else None,
    )


def _literal(text: str | None) -> Any:  # Any: whatever the exporter wrote
    """The Python literal in *text*; None if there is none."""
    try:
        return ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        return None


def sha256_of(path: Path) -> str:
    """SHA-256 of the file *path*."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
