"""Opens, writes, replaces and removes files on this machine and, through fsspec, elsewhere.

A place is a path, `file://...`, or a URL that fsspec knows (`s3://bucket/key`, `gs://...`). Local
files need no library. Drivers come with extras.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from models.atomic_files import is_full, rename_durably, sync_folder, sync_tree
from models.errors import ConfigError, StorageLost
from models.messages import os_error_text

EXTRAS = {
    "pyarrow": "score",
    "fsspec": "score",
    "aiohttp": "score",
    "s3fs": "s3",
    "gcsfs": "gcs",
    "ray": "ray",
}
DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
HTTP = ("http", "https")
CONNECT_S, SILENT_S = 10.0, 30.0
"""Timeouts of HTTP: to connect, and between two parts of an answer."""
DRIVER_MODULES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "fsspec", "s3fs"}
"""Errors of these packages are errors of the storage."""


def require(module: str, *, purpose: str) -> Any:  # Any: a module that may not be installed
    """*module*, imported. Raises `ConfigError` that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed here: pip install"
            f" 'loupe-vision[{EXTRAS[package]}]'"
        ) from error


def is_remote(place: str) -> bool:
    """Whether *place* is reached through fsspec."""
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> str:
    """The path of a *place* on this machine."""
    return unquote(urlsplit(place).path) if place.startswith("file://") else place


@cache
def file_system(scheme: str) -> Any:  # Any: fsspec ships no types
    """The file system of fsspec for URLs of *scheme*.

    Listings are not kept: they would grow with the bucket.
    """
    fsspec = require("fsspec", purpose=f"reading {scheme}://")
    if scheme in DRIVERS:
        require(DRIVERS[scheme], purpose=f"reading {scheme}://")
    options = {}
    if scheme in HTTP:
        timeout = importlib.import_module("aiohttp").ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=SILENT_S
        )
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{scheme}:// cannot be read: {error}. Known here: s3://, gs://, file://, and what"
            " fsspec has a driver for"
        ) from error


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0]


def bucket_of(url: str) -> str:
    """`s3://bucket` of `s3://bucket/key`."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def is_http(place: str) -> bool:
    """Whether *place* is on an HTTP server."""
    return scheme_of(place) in HTTP


def open_place(place: str) -> IO[bytes]:
    """*place*, open for reading, at any position. Raises `OSError`, or what the driver raises."""
    if not is_remote(place):
        return Path(local_path(place)).open("rb")
    options = {"block_size": 0} if is_http(place) else {}
    stream: IO[bytes] = file_system(scheme_of(place)).open(place, "rb", **options)
    if not is_http(place):
        return stream
    # Not every server can send a part of a file.
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's to close
    with stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def exists(place: str) -> bool:
    """Whether there is something at *place*. Raises `StorageLost` if that is unknown.

    Without the right to list, S3 answers 403 for a key that does not exist.
    """
    if not is_remote(place):
        return os.path.lexists(local_path(place))
    with raising_storage_lost(place), suppress(PermissionError):
        return bool(file_system(scheme_of(place)).exists(place))
    return False


def folder_of(place: str) -> str:
    """The folder or prefix of *place*: `/` of `/x`, `.` of `x`, `s3://bucket` of `s3://bucket/x`."""
    if not is_remote(place):
        return os.path.dirname(local_path(place)) or "."  # noqa: PTH120 - text in, text out
    scheme, _, rest = place.partition("://")
    # The query of a URL belongs to that one file.
    folder, slash, _ = (rest.partition("?")[0] if is_http(place) else rest).rpartition("/")
    return f"{scheme}://{folder if slash else rest}"


def joined(folder: str, name: str) -> str:
    """*name* in *folder*, unless it is an absolute path or URL by itself."""
    if "://" in name:
        return name
    return (
        f"{folder.rstrip('/')}/{name.lstrip('/')}"
        if is_remote(folder)
        else os.path.join(local_path(folder), name)  # noqa: PTH118 - text in, text out
    )


@contextmanager
def replaced(place: str) -> Iterator[IO[bytes]]:
    """A stream whose content appears at *place* at the end of the block, whole or not at all.

    Raises `StorageLost`.
    """
    with raising_storage_lost(place):
        if is_remote(place):
            yield from _uploaded(place)
            return
        path = Path(local_path(place))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _uploaded(place: str) -> Iterator[IO[bytes]]:
    # `close` completes the upload, and the object appears. `discard` cancels it.
    stream = file_system(scheme_of(place)).open(place, "wb")
    try:
        yield stream
    except BaseException:
        stream.discard()
        stream.closed = True
        raise
    stream.close()


@contextmanager
def replaced_folder(place: str) -> Iterator[tuple[str, Any]]:
    """(folder to fill, its fsspec file system or None for this machine).

    The folder appears at *place* at the end of the block. Only then are the old files deleted. A
    bucket cannot rename: the new files are copied one by one, then the old ones are deleted.
    """
    if is_remote(place):
        yield from _copied_folder(place)
        return
    path = Path(local_path(place))
    staged, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_tree(staged)
    # Absolute, because pyarrow reads a name with a colon as a URL.
    yield os.path.abspath(staged), None  # noqa: PTH100 - resolves `..` and leaves links
    sync_tree(staged)
    if path.exists():
        _remove_tree(old)
        path.rename(old)
    rename_durably(staged, path)
    _remove_tree(old)


def _copied_folder(place: str) -> Iterator[tuple[str, Any]]:
    system = file_system(scheme_of(place))
    folder, _, name = place.partition("://")[2].rstrip("/").rpartition("/")
    target, staged = f"{folder}/{name}", f"{folder}/.{name}.tmp"
    with suppress(FileNotFoundError):
        system.rm(staged, recursive=True)
    yield staged, system
    files = _files_below(system, staged)
    for name in files:
        system.copy(f"{staged}/{name}", f"{target}/{name}")
    for name in _files_below(system, target) - files:
        system.rm_file(f"{target}/{name}")
    system.rm(staged, recursive=True)


def _files_below(system: Any, folder: str) -> set[str]:
    return {path.partition(f"{folder}/")[2] for path in system.find(folder)}


def _remove_tree(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def remove(place: str) -> None:
    """Delete the file at *place*, if there is one."""
    # Not asked first whether it exists: that may need the right to list.
    with raising_storage_lost(place), suppress(FileNotFoundError):
        if is_remote(place):
            file_system(scheme_of(place)).rm_file(place)
        else:
            Path(local_path(place)).unlink()


@contextmanager
def raising_storage_lost(place: str) -> Iterator[None]:
    """Turn errors of a disk or driver into `StorageLost`, with *place* and what to do."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageLost(
                f"{place}: the disk is full. The job's state is kept: free some space and"
                " continue with --resume"
            ) from error
        if not is_remote(place) and error.errno is not None:
            raise StorageLost(
                f"{os_error_text(error, place)}. The job's state is kept: --resume continues it"
            ) from error
        raise StorageLost(
            f"{place}: {error.strerror or error}. The job's state is kept: put that right and"
            " continue with --resume"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in DRIVER_MODULES:
            raise
        raise StorageLost(
            f"{place}: {error}. The job's state is kept: put that right and continue with --resume"
        ) from error
