"""A model package on disk: verified before anything in it is used.

What is hashed is what is used: `verify_package` reads each file once and hands over the very bytes
that it judged, so that nothing can change between the check and the load.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from models.errors import ManifestInvalid, ModelInvalid, PackageTampered
from models.messages import told
from models.package.graph_check import LIMIT_BYTES, check_graph
from models.package.manifest import (
    GOLDEN_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    SIBLING_FILE,
    FileRecord,
    Manifest,
    Record,
    Share,
)
from models.package.manifest_file import parse_manifest, read_manifest

GOLDEN_FILE = f"{GOLDEN_FOLDER}/golden.json"
LIMIT_MANIFEST_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
SUM_TOLERANCE = 1e-3
"""How far recorded probabilities may sum from 1: fp16 and decimal rounding, over a thousand classes."""


@dataclass(frozen=True)
class GoldenImage:
    """A real input image and the answer that the package must give to it."""

    file: str
    encoded: bytes
    probabilities: tuple[float, ...]
    """One for each label, in the manifest's order."""
    sibling_probabilities: tuple[float, ...] | None = None
    """Likewise, of `model.fp32.onnx`; None in a package without it."""


@dataclass(frozen=True)
class VerifiedPackage:
    """A package that passed every check that needs no session.

    `models.runtime.session` does the rest: its golden images.
    """

    path: Path
    manifest: Manifest
    model: bytes
    """`model.onnx`, as it was hashed: load this, not the file."""
    golden: tuple[GoldenImage, ...]
    golden_tolerance: float
    """Largest absolute difference of a probability from the recorded one."""
    sibling: bytes | None = None
    """`model.fp32.onnx` as it was hashed, of an int8 package that has it."""


def verify_package(package: Path) -> VerifiedPackage:
    """The package in folder *package*: every file listed, unchanged and a plain file, the graph as
    the manifest says.

    Raises `ManifestInvalid`, `PackageTampered` or `ModelInvalid` with the file and the reason.
    """
    found = _plain_files(package)
    manifest = parse_manifest(_read_manifest_bytes(package), origin=str(package / MANIFEST_FILE))
    _check_names(package, found, manifest)
    _check_sizes(package, found, manifest)
    kept = {
        name: _read_checked(package, name, record)
        for name, record in manifest.files.items()
        if _is_kept(name)
    }
    for name, record in manifest.files.items():
        if name not in kept:
            check_file(package, name, record)
    images, tolerance = _parse_golden(
        kept, classes=len(manifest.labels), origin=str(package / GOLDEN_FILE)
    )
    _check_input(manifest, origin=str(package / MANIFEST_FILE))
    _check_sibling(manifest, images, origin=str(package))
    for name in (MODEL_FILE, SIBLING_FILE):
        if name in kept:
            check_graph(kept[name], manifest, origin=str(package / name))
    return VerifiedPackage(
        path=package,
        manifest=manifest,
        model=kept[MODEL_FILE],
        golden=images,
        golden_tolerance=tolerance,
        sibling=kept.get(SIBLING_FILE),
    )


def read_golden(package: Path) -> list[GoldenImage]:
    """The golden images of *package*, unverified. Raises `PackageTampered` or `ManifestInvalid`."""
    folder = package / GOLDEN_FOLDER
    files = (
        {f"{GOLDEN_FOLDER}/{path.name}": path.read_bytes() for path in folder.iterdir()}
        if folder.is_dir()
        else {}
    )
    images, _ = _parse_golden(
        files, classes=len(read_manifest(package).labels), origin=str(package / GOLDEN_FILE)
    )
    return list(images)


def write_golden(package: Path, images: Sequence[GoldenImage], *, tolerance: float) -> None:
    """Write `golden/` of the package being made in folder *package*. Only the exporter calls this."""
    (package / GOLDEN_FOLDER).mkdir()
    for image in images:
        (package / GOLDEN_FOLDER / image.file).write_bytes(image.encoded)
    entries = tuple(
        _GoldenEntry(
            file=image.file,
            probabilities=image.probabilities,
            sibling_probabilities=image.sibling_probabilities,
        )
        for image in images
    )
    text = _GoldenList(tolerance=tolerance, images=entries).model_dump_json(
        indent=1, exclude_none=True
    )
    (package / GOLDEN_FILE).write_text(text + "\n", encoding="utf-8")


def check_file(package: Path, name: str, record: FileRecord) -> None:
    """Raises `PackageTampered` unless file *name* of *package* has the content that *record* says.

    Reads it in pieces.
    """
    digest = hashlib.sha256()
    for chunk in read_chunks(package / name):
        digest.update(chunk)
    _compare(package / name, digest.hexdigest(), record)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of the plain file *path*, refusing whatever else took its place.

    Raises `PackageTampered`.
    """
    # O_NONBLOCK: opening a FIFO would wait for its writer for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageTampered(f"cannot read {told(error, path)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackageTampered(f"{path} is not a plain file; copy the package again")
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


class _GoldenEntry(Record):
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    probabilities: tuple[Share, ...]
    sibling_probabilities: tuple[Share, ...] | None = None

    def answers(self) -> tuple[tuple[Share, ...], ...]:
        return (
            (self.probabilities,)
            if self.sibling_probabilities is None
            else (self.probabilities, self.sibling_probabilities)
        )


class _GoldenList(Record):
    """`golden/golden.json`."""

    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)]
    images: Annotated[tuple[_GoldenEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sums(self) -> _GoldenList:
        for image in self.images:
            for answer in image.answers():
                if abs(sum(answer) - 1.0) > SUM_TOLERANCE:
                    raise ValueError(
                        f"probabilities of {image.file} sum to {sum(answer):.4f}, not 1"
                    )
        return self


def _parse_golden(
    files: Mapping[str, bytes], *, classes: int, origin: str
) -> tuple[tuple[GoldenImage, ...], float]:
    """The golden images in *files* (content by path relative to the package), and their tolerance."""
    if GOLDEN_FILE not in files:
        raise PackageTampered(
            f"{origin} is missing: without golden images nobody can tell whether the model still"
            " answers as it was trained to"
        )
    try:
        golden = _GoldenList.model_validate_json(files[GOLDEN_FILE])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "golden.json"
        raise ManifestInvalid(f"{origin}: {where}: {first['msg']}") from error
    images = []
    for entry in golden.images:
        encoded = files.get(f"{GOLDEN_FOLDER}/{entry.file}")
        if encoded is None:
            raise PackageTampered(f"{origin} names {entry.file}, which is not in the package")
        for answer in entry.answers():
            if len(answer) != classes:
                raise ManifestInvalid(
                    f"{origin}: {entry.file} has {len(answer)} probabilities, but there are"
                    f" {classes} labels"
                )
        images.append(
            GoldenImage(
                file=entry.file,
                encoded=encoded,
                probabilities=entry.probabilities,
                sibling_probabilities=entry.sibling_probabilities,
            )
        )
    return tuple(images), golden.tolerance


def _plain_files(package: Path) -> dict[str, os.stat_result]:
    """Every file below *package* by POSIX path; anything that is neither a folder nor a plain file
    of its own is refused.
    """
    if not package.is_dir():
        raise ManifestInvalid(f"{package} is not a model package: it is no folder")
    found = {}
    folders = [package]
    try:
        while folders:
            for path in folders.pop().iterdir():
                state = path.lstat()
                if stat.S_ISDIR(state.st_mode):
                    folders.append(path)
                    continue
                _check_kind(path, state)
                found[path.relative_to(package).as_posix()] = state
    except OSError as error:
        raise PackageTampered(f"cannot read {told(error, error.filename or package)}") from error
    return found


def _check_kind(path: Path, state: os.stat_result) -> None:
    if stat.S_ISLNK(state.st_mode):
        raise PackageTampered(
            f"{path} is a symbolic link; a package holds plain files only. Copy it with its links"
            " followed (`cp -rL`)"
        )
    if not stat.S_ISREG(state.st_mode):
        raise PackageTampered(
            f"{path} is a special file ({stat.filemode(state.st_mode)}); a package holds plain"
            " files only"
        )
    if state.st_nlink > 1:
        raise PackageTampered(
            f"{path} has {state.st_nlink} hard links: whoever holds another one can change the"
            " model. Copy the package instead of linking it"
        )


def _read_manifest_bytes(package: Path) -> bytes:
    path = package / MANIFEST_FILE
    if not path.exists():
        raise ManifestInvalid(f"{package} is not a model package: it has no {MANIFEST_FILE}")
    if path.stat().st_size > LIMIT_MANIFEST_BYTES:
        raise ManifestInvalid(
            f"{path} has {path.stat().st_size} bytes; a manifest has at most {LIMIT_MANIFEST_BYTES}"
        )
    return b"".join(read_chunks(path))


def _check_names(package: Path, found: Mapping[str, os.stat_result], manifest: Manifest) -> None:
    for required in (MODEL_FILE, GOLDEN_FILE):
        if required not in manifest.files:
            raise ManifestInvalid(f"{package / MANIFEST_FILE}: files does not list {required}")
    missing = sorted(manifest.files.keys() - found.keys())
    if missing:
        raise PackageTampered(
            f"{package}: {', '.join(missing)} is listed in {MANIFEST_FILE} but missing. Copy the"
            " whole package again"
        )
    unlisted = sorted(found.keys() - manifest.files.keys() - {MANIFEST_FILE})
    if unlisted:
        raise PackageTampered(
            f"{package}: {', '.join(unlisted)} is not listed in {MANIFEST_FILE}. Remove it; a"
            " package never changes after export"
        )


def _check_sizes(package: Path, found: Mapping[str, os.stat_result], manifest: Manifest) -> None:
    for model in (MODEL_FILE, SIBLING_FILE):
        if model in found and found[model].st_size > LIMIT_BYTES:
            raise ModelInvalid(
                f"{package / model} has {found[model].st_size} bytes; a model without external data"
                f" has at most {LIMIT_BYTES}"
            )
    for name, record in manifest.files.items():
        if found[name].st_size != record.bytes:
            what = "truncated" if found[name].st_size < record.bytes else "changed"
            raise PackageTampered(
                f"{package / name} is {what}: it has {found[name].st_size} bytes, {MANIFEST_FILE}"
                f" says {record.bytes}. Copy the package again"
            )


def _is_kept(name: str) -> bool:
    return name in (MODEL_FILE, SIBLING_FILE) or name.startswith(f"{GOLDEN_FOLDER}/")


def _read_checked(package: Path, name: str, record: FileRecord) -> bytes:
    content = b"".join(read_chunks(package / name))
    _compare(package / name, hashlib.sha256(content).hexdigest(), record)
    return content


def _compare(path: Path, sha256: str, record: FileRecord) -> None:
    if sha256 != record.sha256:
        raise PackageTampered(
            f"{path} was changed after export: its SHA-256 is {sha256[:16]}..., {MANIFEST_FILE}"
            f" says {record.sha256[:16]}.... Copy the package again"
        )


def _check_sibling(manifest: Manifest, images: Sequence[GoldenImage], *, origin: str) -> None:
    """An int8 package may carry its fp32 sibling, and then the sibling's answers to every golden
    image.
    """
    present = SIBLING_FILE in manifest.files
    if present and manifest.precision != "int8":
        raise ManifestInvalid(
            f"{origin} carries {SIBLING_FILE}, but is {manifest.precision} itself: only an int8"
            " package has a sibling"
        )
    wrong = [image.file for image in images if (image.sibling_probabilities is not None) != present]
    if wrong:
        has = (
            f"{SIBLING_FILE} without answers"
            if present
            else f"answers of {SIBLING_FILE} without that file"
        )
        raise ManifestInvalid(
            f"{origin} has {has} for {', '.join(wrong)}: export the package again"
        )


def _check_input(manifest: Manifest, *, origin: str) -> None:
    """What `models.pixels.preprocess` makes must be what the graph takes."""
    spec = manifest.input
    made: tuple[int | str, ...] = ("N", *manifest.preprocess.crop, 3)
    fits = len(spec.shape) == len(made) and all(
        isinstance(size, str) or size == side for size, side in zip(spec.shape, made, strict=True)
    )
    if spec.name != "image" or spec.dtype != "uint8" or not fits or isinstance(spec.shape[0], int):
        raise ManifestInvalid(
            f"{origin}: input is {spec.name} {spec.dtype} {list(spec.shape)}, but preprocessing"
            f" makes image uint8 {list(made)}"
        )
