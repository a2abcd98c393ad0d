"""TorchServe's model archives: weights and `index_to_name.json` are taken, code is never run."""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from models.errors import ConfigError, ImportRefused
from training.importing.declared import USUAL, Declared
from training.importing.foreign import Foreign
from training.importing.labels import of_mapping
from training.importing.sources.onnx_model import onnx_model
from training.importing.sources.torch_weights import torch_weights

MANIFEST, NAMES = "MAR-INF/MANIFEST.json", "index_to_name.json"
CLASSIFIER = "image_classifier"
USUAL_HANDLER = Declared(size=224, resize="shortest_side", resize_size=256).over(USUAL["imagenet"])
"""What TorchServe's own handler does. Source: its documentation, `image_classifier`."""
MOST_BYTES = 2**31
"""Of one file in the archive, unpacked."""


def torchserve(path: Path, *, network: str | None) -> Foreign:
    """The model in the archive *path*. Raises `ImportRefused` or `ConfigError`."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as place:
            return _taken(archive, path, Path(place), network)
    except zipfile.BadZipFile as error:
        raise ImportRefused(
            f"{path} is no archive of TorchServe's ({error}); copy it again"
        ) from error


def _taken(archive: zipfile.ZipFile, path: Path, place: Path, network: str | None) -> Foreign:
    about = _model(archive, path)
    weights = str(about.get("serializedFile") or "")
    if not weights:
        raise ImportRefused(
            f"{path} has no serialised file, its code fetches the weights; import those themselves"
        )
    # The name from the archive is never used as a path.
    file = place / f"weights{PurePosixPath(weights).suffix}"
    file.write_bytes(_content(archive, weights, path))
    if file.suffix == ".onnx":
        found = onnx_model(file)
    elif network is None:
        code = about.get("modelFile") or "the code in the archive"
        raise ConfigError(
            f"{code} in {path} would build the network, and it is never run; say which network it"
            " is, as in --network resnet18"
        )
    else:
        found = torch_weights(file, network=network)
    handler = str(about.get("handler") or "none").partition(":")[0]
    usual = handler.removesuffix(".py") == CLASSIFIER
    return replace(
        found,
        kind="torchserve",
        name=path.name,
        declared=(USUAL_HANDLER if usual else Declared()).over(found.declared if usual else NONE),
        labels=_labels(archive, path),
        notes=(_told(handler, usual=usual),),
    )


NONE = Declared()


def _told(handler: str, *, usual: bool) -> str:
    """What the handler would have done, as far as that is known."""
    if usual:
        return (
            "handler image_classifier is not run: it scales the short side to 256, crops 224,"
            " normalises as ImageNet and answers with the 5 likeliest; the package does the same"
            " (`top_k=5`)"
        )
    return (
        f"handler {handler} is not run: it would have prepared the image and shaped the answer, so"
        " compare its preprocess() with the lines above"
    )


def _model(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(archive, MANIFEST, path))["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ImportRefused(
            f"{path}: {MANIFEST} says nothing about a model; copy it again"
        ) from error
    return dict(found)


def _labels(archive: zipfile.ZipFile, path: Path) -> tuple[str, ...] | None:
    if NAMES not in archive.namelist():
        return None
    found = json.loads(_content(archive, NAMES, path))
    return of_mapping(found, origin=f"in {path}, {NAMES}")


def _content(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """The file *name*, if it is there and of a sensible size."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise ImportRefused(f"{path} lacks {name}; archive the model again") from error
    if entry.file_size > MOST_BYTES:
        raise ImportRefused(f"{path}: {name} would unpack to {entry.file_size / 2**30:.1f} GiB")
    return archive.read(entry)
