"""Reading and writing `manifest.json`, strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from models.errors import ManifestInvalid
from models.files import parse_json, read_file
from models.messages import os_error_text
from models.package.manifest import MANIFEST_FILE, SCHEMA_VERSION, FileRecord, Manifest


def parse_manifest(text: str | bytes, *, origin: str) -> Manifest:
    """The manifest in *text*.

    Raises `ManifestInvalid` with the offending field and *origin*.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise ManifestInvalid(f"{origin}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ManifestInvalid(f"{origin}: expected a JSON object, found {type(raw).__name__}")
    version = raw.get("schema_version")
    if type(version) is not int or version < 1:
        raise ManifestInvalid(
            f"{origin}: schema_version is {version!r}, expected a whole number of 1 to"
            f" {SCHEMA_VERSION}"
        )
    if version > SCHEMA_VERSION:
        raise ManifestInvalid(
            f"{origin}: schema_version {version} is from a newer Loupe; this one reads up to"
            f" {SCHEMA_VERSION}. Upgrade Loupe to serve this package"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise ManifestInvalid(f"{origin}: {first_problem(error, 'manifest')}") from error


def read_manifest(package: Path) -> Manifest:
    """The manifest of the package folder *package*. Raises `ManifestInvalid`."""
    path = package / MANIFEST_FILE
    try:
        text = read_file(path)
    except FileNotFoundError as error:
        raise ManifestInvalid(
            f"{package} is not a model package: it has no {MANIFEST_FILE}"
        ) from error
    except OSError as error:
        raise ManifestInvalid(os_error_text(error, path)) from error
    return parse_manifest(text, origin=str(path))


def write_manifest(package: Path, manifest: Manifest) -> None:
    """Write *manifest* into the folder *package*.

    Only the exporter calls this: a package never changes afterwards.
    """
    (package / MANIFEST_FILE).write_text(
        manifest.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )


def record_files(package: Path) -> dict[str, FileRecord]:
    """SHA-256 and size of every file below *package* but the manifest, in name order."""
    files = sorted(
        path for path in package.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )
    return {path.relative_to(package).as_posix(): record_file(path) for path in files}


def record_file(path: Path) -> FileRecord:
    """SHA-256 and size of *path*."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(sha256=digest, bytes=path.stat().st_size)


def first_problem(error: ValidationError, whole: str) -> str:
    """`field.path: what is wrong` of the first problem, and how many more there are.

    A problem without a field is one of the *whole*.
    """
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"]) or whole
    return f"{where}: {first['msg']}" + (f" (and {len(others)} more)" if others else "")
