"""Tells the kinds of models apart, by what a file or folder holds."""

from __future__ import annotations

from pathlib import Path

from models.errors import ConfigError
from models.package.manifest import MANIFEST_FILE
from training.importing.foreign import Foreign

EXPECTED = (
    "an .onnx file, weights (.pth, .safetensors) with --network, a folder of Hugging Face's"
    " (config.json), a .mar, a .keras, or a folder of Triton's (config.pbtxt)"
)


def foreign_model(path: Path, *, network: str | None) -> Foreign:
    """The model at *path*; *network* is its architecture, where the weights alone are there.

    Raises `ConfigError` for what is no model, `ImportRefused` for one that cannot be imported.
    """
    return _of_folder(path) if path.is_dir() else _of_file(path, network)


def _of_file(path: Path, network: str | None) -> Foreign:
    match path.suffix.lower():
        case ".onnx":
            from training.importing.sources.onnx_model import onnx_model

            return onnx_model(path)
        case ".pth" | ".pt" | ".bin" | ".ckpt" | ".safetensors":
            from training.importing.sources.torch_weights import torch_weights

            return torch_weights(path, network=network)
        case ".mar":
            from training.importing.sources.torchserve import torchserve

            return torchserve(path, network=network)
        case ".keras" | ".h5":
            from training.importing.sources.keras_model import keras_model

            return keras_model(path)
    raise ConfigError(f"{path} is no model that Loupe can import; expected {EXPECTED}")


def _of_folder(folder: Path) -> Foreign:
    if (folder / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{folder} is a package of Loupe's already; `loupe publish` puts it into the store"
        )
    if (folder / "config.pbtxt").is_file():
        from training.importing.sources.triton import triton

        return triton(folder)
    if (folder / "config.json").is_file():
        from training.importing.sources.huggingface import huggingface

        return huggingface(folder)
    if (folder / "saved_model.pb").is_file():
        from training.importing.sources.keras_model import saved_model

        return saved_model(folder)
    found = sorted(folder.glob("*.onnx"))
    hint = f"; did you mean {found[0]}?" if found else ""
    raise ConfigError(f"{folder} is no model that Loupe can import{hint}; expected {EXPECTED}")
