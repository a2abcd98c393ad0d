"""Atomic writes, locks, staging folders, and errors of the disk as messages for people."""

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
from models.messages import os_error_text

STAGING_PREFIX = ".staging-"
FULL = (errno.ENOSPC, errno.EDQUOT)
STORE_ADVICE = {
    **dict.fromkeys(FULL, "; `loupe models gc NAME` removes old versions"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "; --store or LOUPE_STORE names another place"
    ),
}
"""What to do about an error number in the model store."""


@contextmanager
def storage_errors(path: Path, *, in_store: bool = False) -> Iterator[None]:
    """Turn any `OSError` into a `StoreError` that says why and what to do.

    It names the file, or *path* for a temporary one. With *in_store* it adds that the model store,
    which no failed write damages, is still valid.
    """
    try:
        yield
    except OSError as error:
        name = "" if error.filename is None else Path(os.fsdecode(error.filename)).name
        temporary = not name or name.startswith(".")
        note = f". The store is still valid{STORE_ADVICE.get(error.errno or 0, '')}"
        raise StoreError(
            os_error_text(error, path if temporary else None) + (note if in_store else "")
        ) from error


def write_durably(path: Path, content: bytes) -> None:
    """Replace *path* at once. A reader sees the old content or the new, also after a power cut.

    There may be one writer at a time.
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
    """Hold the lock file *path*. The kernel releases it when the holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(folder: Path, *, lock: Path) -> Iterator[Path]:
    """A hidden folder in *folder* to build in. It is removed at the end.

    It holds a file `alive`, locked for as long as its process lives. Folders of dead processes are
    removed first. Creation and removal happen under *lock*, so that no process takes a folder for
    dead that is not locked yet, or half removed.
    """
    with locked(lock):
        clear_dead(folder)
        place = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
        alive = os.open(place / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
    try:
        yield place
    finally:
        # What cannot be removed now (a read-only disk) is removed by the next `staging`.
        with suppress(OSError), locked(lock):
            shutil.rmtree(place)
        os.close(alive)


def clear_dead(folder: Path) -> None:
    """Remove the staging folders of dead processes in *folder*. The caller holds its lock."""
    for place in dead_stagings(folder):
        shutil.rmtree(place)


def dead_stagings(folder: Path) -> Iterator[Path]:
    """Staging folders in *folder* whose process has died."""
    for place in sorted(folder.glob(f"{STAGING_PREFIX}*")):
        try:
            descriptor = os.open(place / "alive", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield place
            continue
        except PermissionError:  # another user's, who may still be at work
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield place
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def user_name() -> str:
    """Name of the user that this process runs as, from the system and not from the environment."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def is_full(error: OSError) -> bool:
    """Whether *error* says that the disk, or this user's share of it, is full."""
    return error.errno in FULL
