"""Verification of a model package, before anything in it is used.

`verify_package` reads each file once and returns the bytes that it checked. Nothing can change
between the check and the load.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from models.errors import ManifestInvalid, ModelInvalid, PackageTampered
from models.messages import os_error_text
from models.package.graph_check import LIMIT_BYTES, check_graph
from models.package.manifest import (
    GOLDEN_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    SIBLING_FILE,
    FileRecord,
    Manifest,
    Share,
    StrictRecord,
)
from models.package.manifest_file import first_problem, read_manifest

GOLDEN_FILE = f"{GOLDEN_FOLDER}/golden.json"
CHUNK_BYTES = 2**20
SUM_TOLERANCE = 1e-3
"""Largest distance of a sum of probabilities from 1: fp16 and decimals, over 1,000 classes."""


class GoldenImage(StrictRecord):
    """A real input image and the answer that the package must give to it."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    probabilities: tuple[Share, ...]
    """One for each label, in the manifest's order."""
    sibling_probabilities: tuple[Share, ...] | None = None
    """The same of `model.fp32.onnx`; None in a package without it."""
    encoded: Annotated[bytes, Field(exclude=True)] = b""
    """The content of *file*, which is not part of `golden.json`."""

    def answers(self) -> tuple[tuple[float, ...], ...]:
        """The recorded probabilities: the model's, then its fp32 sibling's if there is one."""
        sibling = self.sibling_probabilities
        return (self.probabilities,) if sibling is None else (self.probabilities, sibling)


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
    """The package in folder *package*, once its files and its graph match its manifest.

    Raises `ManifestInvalid`, `PackageTampered` or `ModelInvalid` with the file and the reason.
    """
    found = _plain_files(package)
    manifest = read_manifest(package)
    _check_files(package, found, manifest)
    kept = {}
    for name, record in manifest.files.items():
        chunks = checked(read_chunks(package / name), record, origin=str(package / name))
        if name in (MODEL_FILE, SIBLING_FILE) or name.startswith(f"{GOLDEN_FOLDER}/"):
            kept[name] = b"".join(chunks)
        else:
            deque(chunks, maxlen=0)
    golden = parse_golden(kept, classes=len(manifest.labels), origin=str(package / GOLDEN_FILE))
    _check_input(manifest, origin=str(package / MANIFEST_FILE))
    _check_sibling(manifest, golden.images, origin=str(package))
    for name in kept.keys() & {MODEL_FILE, SIBLING_FILE}:
        check_graph(kept[name], manifest, origin=str(package / name))
    return VerifiedPackage(
        path=package,
        manifest=manifest,
        model=kept[MODEL_FILE],
        golden=golden.images,
        golden_tolerance=golden.tolerance,
        sibling=kept.get(SIBLING_FILE),
    )


def write_golden(package: Path, images: Sequence[GoldenImage], *, tolerance: float) -> None:
    """Write `golden/` of the package that is made in folder *package*. For the exporter."""
    (package / GOLDEN_FOLDER).mkdir()
    for image in images:
        (package / GOLDEN_FOLDER / image.file).write_bytes(image.encoded)
    text = GoldenList(tolerance=tolerance, images=tuple(images)).model_dump_json(
        indent=1, exclude_none=True
    )
    (package / GOLDEN_FILE).write_text(text + "\n", encoding="utf-8")


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of the plain file *path*, in pieces. Raises `PackageTampered` if it is none."""
    # O_NONBLOCK: opening a FIFO would wait for its writer forever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageTampered(f"cannot read {os_error_text(error, path)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackageTampered(f"{path} is not a plain file; copy the package again")
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def checked(chunks: Iterable[bytes], record: FileRecord, *, origin: str) -> Iterator[bytes]:
    """*chunks* unchanged, up to the size in *record*.

    Raises `PackageTampered` at the end if they are not the content that *record* describes.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > record.bytes:
            break
        yield chunk
    if digest.hexdigest() != record.sha256:
        raise PackageTampered(
            f"{origin} was changed after export: its SHA-256 is {digest.hexdigest()[:16]}...,"
            f" {MANIFEST_FILE} says {record.sha256[:16]}.... Copy the package again"
        )


class GoldenList(StrictRecord):
    """`golden/golden.json`."""

    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)]
    images: Annotated[tuple[GoldenImage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sums(self) -> GoldenList:
        for image in self.images:
            for answer in image.answers():
                if abs(sum(answer) - 1.0) > SUM_TOLERANCE:
                    raise ValueError(
                        f"probabilities of {image.file} sum to {sum(answer):.4f}, not 1"
                    )
        return self


def parse_golden(files: Mapping[str, bytes], *, classes: int, origin: str) -> GoldenList:
    """The golden images in *files*: content by path relative to the package."""
    try:
        golden = GoldenList.model_validate_json(files[GOLDEN_FILE])
    except ValidationError as error:
        raise ManifestInvalid(f"{origin}: {first_problem(error, 'golden.json')}") from error
    images = []
    for image in golden.images:
        encoded = files.get(f"{GOLDEN_FOLDER}/{image.file}")
        if encoded is None:
            raise PackageTampered(f"{origin} names {image.file}, which is not in the package")
        for answer in image.answers():
            if len(answer) != classes:
                raise ManifestInvalid(
                    f"{origin}: {image.file} has {len(answer)} probabilities, but there are"
                    f" {classes} labels"
                )
        images.append(image.model_copy(update={"encoded": encoded}))
    return golden.model_copy(update={"images": tuple(images)})


def _plain_files(package: Path) -> dict[str, os.stat_result]:
    """Every file below *package* by POSIX path. Links and special files are refused."""
    if not package.is_dir():
        raise ManifestInvalid(f"{package} is not a model package: it is not a folder")
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
        raise PackageTampered(
            f"cannot read {os_error_text(error, error.filename or package)}"
        ) from error
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
            f"{path} has {state.st_nlink} hard links: anyone with another link can change the"
            " model. Copy the package instead of linking it"
        )


def _check_files(package: Path, found: Mapping[str, os.stat_result], manifest: Manifest) -> None:
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


def _check_sibling(manifest: Manifest, images: Sequence[GoldenImage], *, origin: str) -> None:
    """An fp32 sibling is allowed in an int8 package only, with its answer to each golden image."""
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
    """The graph must take what `models.pixels.preprocess` makes."""
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
