"""Reads an edge bundle, a zip or the folder that it was unpacked into, as a model.

Nothing in a bundle is run: its manifest, its networks and its golden images are read, each checked
against the hash in `bundle.json`. `training/edge` writes bundles.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from models.errors import ManifestInvalid, ModelInvalid, PackageTampered
from models.messages import os_error_text
from models.package.graph_check import LIMIT_BYTES, check_graph
from models.package.manifest import GOLDEN_FOLDER, MANIFEST_FILE, FileRecord, Manifest
from models.package.manifest_file import first_problem, parse_manifest
from models.package.verify import GOLDEN_FILE, VerifiedPackage, checked, parse_golden

INDEX_FILE = "bundle.json"
MOST_INDEX_BYTES = 4 * 2**20
CHUNK_BYTES = 2**20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What reading a damaged or encrypted zip raises."""

OpenFile = Callable[[str], IO[bytes]]
"""Opens a file of the bundle by its name. Raises `KeyError` or `OSError` if there is none."""


class _Index(BaseModel):
    """What is needed of `bundle.json`."""

    variants: dict[str, str]
    files: dict[str, FileRecord]


def is_bundle(path: Path) -> bool:
    """Whether *path* is an edge bundle, packed or unpacked."""
    if path.is_dir():
        return (path / INDEX_FILE).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return INDEX_FILE in archive.namelist()
    except (OSError, *DAMAGE):
        return False


def read_bundle(path: Path) -> VerifiedPackage:
    """The model of the edge bundle *path*, as if it were a package without maps and embeddings.

    Raises `PackageTampered` if a file is missing or changed, and `ManifestInvalid` or
    `ModelInvalid` if one says something else than it should.
    """
    if path.is_dir():
        return _read(path, lambda name: (path / name).open("rb"))
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive.open)
    except DAMAGE as error:
        raise PackageTampered(
            f"{path} is not a whole bundle: {error}. Copy the bundle again"
        ) from error


def _read(path: Path, opened: OpenFile) -> VerifiedPackage:
    index = _index(path, opened)
    manifest = parse_manifest(_content(path, opened, index, MANIFEST_FILE), origin=str(path))
    networks = {
        precision: _content(path, opened, index, index.variants[f"{precision}.onnx"])
        for precision in dict.fromkeys((manifest.precision, "fp32"))
        if f"{precision}.onnx" in index.variants
    }
    if manifest.precision not in networks:
        raise ModelInvalid(
            f"{path} holds no network as ONNX; it has {', '.join(index.variants) or 'none'}. Give"
            " the package that it was made of, or build it with --target python"
        )
    golden_files = {
        name: _content(path, opened, index, name)
        for name in index.files
        if name.startswith(f"{GOLDEN_FOLDER}/")
    }
    if GOLDEN_FILE not in golden_files:
        raise PackageTampered(f"{path} has no {GOLDEN_FILE}: copy the bundle again")
    golden = parse_golden(golden_files, classes=len(manifest.labels), origin=str(path))
    manifest = _with_outputs(manifest, networks[manifest.precision])
    for precision, network in networks.items():
        check_graph(network, manifest, origin=f"{path}, {precision}")
    return VerifiedPackage(
        path=path,
        manifest=manifest,
        model=networks.pop(manifest.precision),
        golden=golden.images,
        golden_tolerance=golden.tolerance,
        sibling=networks.get("fp32"),
    )


def _index(path: Path, opened: OpenFile) -> _Index:
    try:
        with opened(INDEX_FILE) as stream:
            return _Index.model_validate_json(stream.read(MOST_INDEX_BYTES))
    except ValidationError as error:
        raise ManifestInvalid(f"{path}: {first_problem(error, INDEX_FILE)}") from error
    except (KeyError, OSError) as error:
        raise PackageTampered(f"{path} has no readable {INDEX_FILE}: copy it again") from error


def _content(path: Path, opened: OpenFile, index: _Index, name: str) -> bytes:
    """The file *name* of the bundle, once it is what *index* says."""
    record = index.files.get(name)
    if record is None or record.bytes > LIMIT_BYTES:
        raise PackageTampered(f"{path}: {INDEX_FILE} lists no {name} that can be read")
    try:
        with opened(name) as stream:
            chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
            return b"".join(checked(chunks, record, origin=f"{path}: {name}"))
    except OSError as error:
        raise PackageTampered(os_error_text(error, f"{path}: {name}")) from error
    except KeyError as error:
        raise PackageTampered(f"{path} lacks {name}: copy the bundle again") from error


def _with_outputs(manifest: Manifest, network: bytes) -> Manifest:
    """*manifest* with only the outputs that *network* still has: a bundle's compute the answer."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no types

    try:
        names = {value.name for value in onnx.ModelProto.FromString(network).graph.output}
    except DecodeError:
        return manifest  # `check_graph` says what is wrong
    kept = tuple(output for output in manifest.outputs if output.name in names)
    return manifest.model_copy(update={"outputs": kept})
