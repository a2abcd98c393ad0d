"""Writes that a crash cannot halve, locks that die with their holder, and what to tell a person
whose disk refuses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.errors import StoreError
from models.messages import told

STAGING_PREFIX = ".staging-"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Any `OSError` inside becomes a `StoreError` that says why and what to do.

    It names the file, or *path* for a temporary one.
    """
    try:
        yield
    except OSError as error:
        temporary = error.filename is None or os.path.basename(
            os.fsdecode(error.filename)
        ).startswith(".")
        raise StoreError(told(error, path if temporary else None)) from error


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """As `storage_errors`, for the model store, which no failed write damages."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{told(error, error.filename or path)}. The store is still valid{_way_out(error)}"
        ) from error


def write_durably(path: Path, content: bytes) -> None:
    """Replace *path* at once: a reader sees the old content or the new, after a power cut too.

    One writer at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Move folder *source* to *target*, on the same file system, in one step.

    *target* must not exist or be an empty folder.
    """
    source.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """As `sync_folder`, for *folder* and every folder below it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file *path* alone.

    The kernel lets go of it when the holder dies, however it dies.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(folder: Path, *, lock: Path) -> Iterator[Path]:
    """A hidden folder in *folder* to build in, gone afterwards; those that dead processes left
    behind go first.

    It holds a file `alive` that is locked for as long as its process lives. Making and removing
    happen under *lock*, so that nobody takes for dead what is made but not locked yet, or half
    removed.
    """
    with locked(lock):
        clear_dead(folder)
        place = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
        alive = os.open(place / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
    try:
        yield place
    finally:
        # What cannot be removed now (a disk that went read-only) is a dead folder to the next one.
        with suppress(OSError), locked(lock):
            shutil.rmtree(place)
        os.close(alive)


def clear_dead(folder: Path) -> None:
    """Remove what processes that no longer live left staged in *folder*. The caller holds its lock."""
    for place in folder.glob(f"{STAGING_PREFIX}*"):
        try:
            alive = os.open(place / "alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            shutil.rmtree(place)
            continue
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)
        except BlockingIOError:
            continue
        finally:
            os.close(alive)


def user_name() -> str:
    """Name of the user that this process runs as; from the system, since anybody can set an
    environment variable.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _way_out(error: OSError) -> str:
    if is_full(error):
        return "; `loupe models gc NAME` removes old versions"
    return (
        "; --store or LOUPE_STORE names another place"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        else ""
    )


def is_full(error: OSError) -> bool:
    """Whether *error* says that there is no room left on the disk, or none for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
