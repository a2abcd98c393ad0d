"""Copies a package, packs it as one file, and unpacks it, byte for byte as it was verified."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from models.atomic_files import rename_durably, storage_errors, sync_tree
from models.errors import PackageError, PackageTampered, StoreError
from models.files import LIMIT_BYTES
from models.package.manifest import MANIFEST_FILE, FileRecord, Manifest
from models.package.manifest_file import parse_manifest
from models.package.verify import (
    CHUNK_BYTES,
    VerifiedPackage,
    checked,
    read_chunks,
    verify_package,
)
from models.store.names import is_name

PACKED_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date of a zip. With a fixed one, a package always packs to the same bytes."""
ENCRYPTED = 1
"""Bit of a zip member's flags."""
UNIX = 3
"""Value of the zip field `create_system`, which says how to read the file mode."""


def copy_package(verified: VerifiedPackage, destination: Path) -> None:
    """Write *verified* durably to the new folder *destination*.

    Raises `PackageTampered` if it changed since it was verified.
    """
    destination.mkdir()
    for name, chunks, record in _members(verified):
        _write_checked(destination / name, chunks, record)
    sync_tree(destination)


def pack_package(package: Path, out: Path, *, name: str) -> None:
    """Write the package in folder *package* to the single file *out*, under the name *name*.

    It is a zip of one folder, not compressed: images and weights hardly shrink, and the same
    package gives the same bytes on every machine.
    """
    if out.is_dir():
        raise StoreError(f"{out} is a folder; name the file to write")
    verified = verify_package(package)
    temporary = out.with_name(f".{out.name}.tmp")
    with storage_errors(out):
        try:
            with zipfile.ZipFile(temporary, "w") as archive:
                for file, chunks, record in _members(verified):
                    info = zipfile.ZipInfo(f"{name}/{file}", date_time=PACKED_DATE)
                    info.create_system, info.external_attr, info.file_size = (
                        UNIX,
                        (stat.S_IFREG | 0o644) << 16,
                        record.bytes,
                    )
                    with archive.open(info, "w") as stream:
                        for chunk in checked(chunks, record, origin=str(package / file)):
                            stream.write(chunk)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


def unpack_package(packed: Path, destination: Path) -> str:
    """Unpack the file *packed* into the new folder *destination* and verify it.

    Returns the name that it was packed under. The file may come from anywhere: nothing is written
    outside *destination*, and no more than the manifest lists. Raises `PackageError`.
    """
    if destination.exists():
        raise StoreError(
            f"{destination} exists already; name a folder that does not, `unpack` makes it"
        )
    with (
        storage_errors(destination),
        tempfile.TemporaryDirectory(prefix=".unpack-", dir=destination.parent) as place,
    ):
        unpacked = Path(place) / "package"
        try:
            with zipfile.ZipFile(packed) as archive:
                name = _extract(archive, unpacked, packed)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise PackageError(
                f"{packed} is not a whole package file: {error}. Copy it again, or pack it again"
                " with `loupe models pack`"
            ) from error
        verify_package(unpacked)
        rename_durably(unpacked, destination)
    return name


def _extract(archive: zipfile.ZipFile, destination: Path, packed: Path) -> str:
    name, members = _judge_members(archive, packed)
    manifest, content = _packed_manifest(archive, members, packed)
    destination.mkdir()
    (destination / MANIFEST_FILE).write_bytes(content)
    for file, record in manifest.files.items():
        with archive.open(members[file]) as stream:
            _write_checked(destination / file, iter(partial(stream.read, CHUNK_BYTES), b""), record)
    return name


def _members(verified: VerifiedPackage) -> Iterator[tuple[str, Iterable[bytes], FileRecord]]:
    """Every file of *verified* with its content and its record, the manifest first."""
    content = b"".join(read_chunks(verified.path / MANIFEST_FILE))
    if parse_manifest(content, origin=str(verified.path / MANIFEST_FILE)) != verified.manifest:
        raise PackageTampered(
            f"{verified.path / MANIFEST_FILE} was changed while it was being copied"
        )
    yield (
        MANIFEST_FILE,
        [content],
        FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)),
    )
    for name in sorted(verified.manifest.files):
        yield name, read_chunks(verified.path / name), verified.manifest.files[name]


def _write_checked(path: Path, chunks: Iterable[bytes], record: FileRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        for chunk in checked(chunks, record, origin=str(path)):
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def _judge_members(
    archive: zipfile.ZipFile, packed: Path
) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The single top folder's name, and the members by their path below it."""
    members: dict[str, zipfile.ZipInfo] = {}
    names = set()
    for info in archive.infolist():
        name, _, file = info.filename.partition("/")
        parts = PurePosixPath(file).parts
        kind = stat.S_IFMT(info.external_attr >> 16)
        if (
            not is_name(name)
            or not parts
            or "/".join(parts) != file
            or {".", ".."} & set(parts)
            or "\\" in file
            or "\0" in file
        ):
            raise PackageTampered(
                f"{packed}: member {info.filename!r} would land outside the package; refused"
            )
        if kind not in (0, stat.S_IFREG):
            raise PackageTampered(
                f"{packed}: member {info.filename!r} is a link or special file; refused"
            )
        if info.flag_bits & ENCRYPTED or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise PackageTampered(
                f"{packed}: member {info.filename!r} is encrypted or compressed in a way that"
                " `pack` never does; refused"
            )
        if file in members:
            raise PackageTampered(f"{packed}: member {info.filename!r} occurs twice; refused")
        names.add(name)
        members[file] = info
    if len(names) != 1 or MANIFEST_FILE not in members:
        raise PackageError(
            f"{packed} is not a package file: expected one folder with a {MANIFEST_FILE}, found"
            f" {', '.join(sorted(names)) or 'nothing'}"
        )
    return names.pop(), members


def _packed_manifest(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], packed: Path
) -> tuple[Manifest, bytes]:
    """The manifest and its bytes, if the members are the files that it lists, with their sizes."""
    with archive.open(members[MANIFEST_FILE]) as stream:
        content = stream.read(LIMIT_BYTES)
    manifest = parse_manifest(content, origin=f"{packed}: {MANIFEST_FILE}")
    differing = sorted(members.keys() ^ (manifest.files.keys() | {MANIFEST_FILE}))
    if differing:
        raise PackageTampered(
            f"{packed}: {', '.join(differing)} is in the file or in {MANIFEST_FILE}, but not in"
            " both; refused"
        )
    for file, record in manifest.files.items():
        if members[file].file_size != record.bytes:
            raise PackageTampered(
                f"{packed}: {file} has {members[file].file_size} bytes, {MANIFEST_FILE} says"
                f" {record.bytes}; refused"
            )
    return manifest, content
