"""Exports for other servers: Triton's `config.pbtxt`, and BentoML's model store."""

from __future__ import annotations

import json
from pathlib import Path

from models.atomic_files import locked, storage_errors, write_durably
from models.errors import StoreError
from models.messages import label_lines
from models.package.manifest import Manifest, TensorSpec
from models.package.verify import verify_package
from models.store.store import ALIASES_FILE, LOCK_FILE, PRODUCTION, ModelRef
from models.store.transfer import copy_package

TRITON_CONFIG_FILE = "config.pbtxt"
TRITON_LABELS_FILE = "labels.txt"
BENTO_STORE = "store"
"""The folder in a BentoML model that is a store with this one version. So BentoML brings what
`LOUPE_STORE` can name."""
BENTO_PRODUCER = "loupe"

_TRITON_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


def write_triton(ref: ModelRef, *, max_batch_size: int = 32) -> Path:
    """Write a `config.pbtxt` with which Triton serves *ref* from the store; returns its path.

    It names that one version, whose shapes and labels it has. Write it again after a promotion.
    Raises `PackageError`.
    """
    verified = verify_package(ref.path)
    folder = ref.path.parent
    config = triton_config(
        verified.manifest, name=ref.name, version=ref.version, max_batch_size=max_batch_size
    )
    with storage_errors(folder, in_store=True), locked(folder / LOCK_FILE):
        write_durably(folder / TRITON_LABELS_FILE, label_lines(verified.manifest.labels).encode())
        write_durably(folder / TRITON_CONFIG_FILE, config.encode())
    return folder / TRITON_CONFIG_FILE


def triton_config(manifest: Manifest, *, name: str, version: int, max_batch_size: int) -> str:
    """Triton's `ModelConfig` of the package, in protobuf's text format.

    Source: model_config.proto of triton-inference-server/common. With a `max_batch_size` the batch
    dimension is left out of `dims`.
    """
    inputs = _triton_tensor("input", manifest.input)
    outputs = "".join(
        _triton_tensor("output", spec, labelled=spec.name == "probabilities")
        for spec in manifest.outputs
    )
    return (
        f"name: {json.dumps(name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {max_batch_size}\n"
        f"version_policy {{ specific {{ versions: [{version}] }} }}\n"
        f"{inputs}{outputs}"
        "dynamic_batching { }\n"
    )


def export_to_bento(ref: ModelRef) -> str:
    """Copy *ref* into BentoML's model store and return its tag.

    `BENTOML_HOME` says where that store is. Raises `PackageError`, or `StoreError` if BentoML
    refuses, for example because the tag exists.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    verified = verify_package(ref.path)
    manifest = verified.manifest
    metadata = {
        "network": manifest.architecture.network,
        "precision": manifest.precision,
        "labels": list(manifest.labels),
    }
    try:
        with bentoml.models.create(
            str(ref), labels={"producer": BENTO_PRODUCER}, metadata=metadata
        ) as model:
            folder = Path(model.path_of(BENTO_STORE)) / ref.name
            folder.mkdir(parents=True)
            copy_package(verified, folder / str(ref.version))
            write_durably(
                folder / ALIASES_FILE, json.dumps({PRODUCTION: ref.version}).encode("ascii")
            )
            return str(model.tag)
    except (BentoMLException, ValueError) as error:
        raise StoreError(
            f"BentoML does not take {ref}: {error}. `bentoml models delete {ref}` removes one that"
            " is there"
        ) from error


def _triton_tensor(field: str, spec: TensorSpec, *, labelled: bool = False) -> str:
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in spec.shape[1:])
    labels = f" label_filename: {json.dumps(TRITON_LABELS_FILE)}" if labelled else ""
    return (
        f"{field} {{ name: {json.dumps(spec.name)} data_type: {_TRITON_TYPES[spec.dtype]} dims:"
        f" [{dims}]{labels} }}\n"
    )
