"""Tells the kinds of models apart, by what a file or folder holds."""

from __future__ import annotations

from pathlib import Path

from models.errors import ConfigError
from training.importing.foreign import Foreign
from training.importing.sources.onnx_model import onnx_model

KINDS = "an .onnx file"


def foreign_model(path: Path, *, network: str | None) -> Foreign:
    """The model at *path*; *network* is its architecture, where the weights alone are there.

    Raises `ConfigError` for what is no model, `ImportRefused` for one that cannot be imported.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; expected {KINDS}")
    if path.is_file() and path.suffix == ".onnx":
        return onnx_model(path)
    raise ConfigError(f"{path} is no model that Loupe can import; expected {KINDS}")
