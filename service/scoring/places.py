"""Where files lie: this machine without any library, everything else through fsspec.

A place is a path, `file://...`, or a URL that fsspec knows (`s3://bucket/key`, `gs://...`). Drivers come with extras.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from models.durable import is_full, sync_folder
from models.errors import ConfigError, StorageLost

EXTRAS = {"pyarrow": "score", "fsspec": "score", "s3fs": "s3", "gcsfs": "gcs", "ray": "ray"}
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def require(module: str, *, purpose: str) -> Any:  # Any: a module that may not be installed
    """*module*, imported. Raises `ConfigError` that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{purpose} needs {package}, which is not installed here: pip install 'loupe-vision[{EXTRAS[package]}]'") from error


def is_remote(place: str) -> bool:
    """Whether *place* is reached through fsspec."""
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> str:
    """The path of a *place* on this machine."""
    return unquote(urlsplit(place).path) if place.startswith("file://") else place


@cache
def file_system(scheme: str) -> Any:  # Any: fsspec ships no types
    """The file system of fsspec for URLs of *scheme*. Listings are not kept: they would grow with the bucket."""
    fsspec = require("fsspec", purpose=f"reading {scheme}://")
    if scheme in DRIVERS:
        require(DRIVERS[scheme], purpose=f"reading {scheme}://")
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{scheme}:// cannot be read: {error}. Known here: s3://, gs://, file://, and what fsspec has a driver for") from error


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0]


def bucket_of(url: str) -> str:
    """`s3://bucket` of `s3://bucket/key`."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def open_place(place: str) -> IO[bytes]:
    """*place*, open for reading. Raises `OSError`, or what the driver raises."""
    if not is_remote(place):
        return Path(local_path(place)).open("rb")
    stream: IO[bytes] = file_system(scheme_of(place)).open(place, "rb")
    return stream


def exists(place: str) -> bool:
    """Whether there is something at *place*. Raises `StorageLost` if that cannot be found out."""
    if not is_remote(place):
        return Path(local_path(place)).exists()
    with storage_kept(place):
        return bool(file_system(scheme_of(place)).exists(place))


def joined(folder: str, name: str) -> str:
    """*name* in *folder*, unless it is an absolute path or URL by itself."""
    if "://" in name:
        return name
    return f"{folder.rstrip('/')}/{name.lstrip('/')}" if is_remote(folder) else os.path.join(local_path(folder), name)  # noqa: PTH118 - text in, text out


@contextmanager
def replaced(place: str) -> Iterator[IO[bytes]]:
    """A stream whose content appears at *place* all at once at the end, or not at all. Raises `StorageLost`."""
    with storage_kept(place):
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
    # An object appears when its upload is completed by close; discard gives it up.
    stream = file_system(scheme_of(place)).open(place, "wb")
    try:
        yield stream
    except BaseException:
        discard = getattr(stream, "discard", None)
        if discard is not None:
            discard()
        stream.closed = True
        raise
    stream.close()


def remove(place: str) -> None:
    """Nothing is at *place* afterwards."""
    with storage_kept(place):
        if is_remote(place):
            system = file_system(scheme_of(place))
            if system.exists(place):
                system.rm(place, recursive=True)
            return
        path = Path(local_path(place))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def storage_kept(place: str) -> Iterator[None]:
    """Whatever a disk or a driver raises inside becomes a `StorageLost` that names *place* and the way out."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageLost(f"{place}: the disk is full. The job's state is kept: free some space and go on with --resume") from error
        raise StorageLost(f"{place}: {error.strerror or error}. The job's state is kept: put that right and go on with --resume") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "fsspec", "s3fs"}:
            raise
        raise StorageLost(f"{place}: {error}. The job's state is kept: put that right and go on with --resume") from error
