"""The server's folder for temporary files: where it is, and that none is left behind."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError
from service.settings import HOME_PREFIX

LOCK = "lock"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
NEW_S = 600.0
"""A folder without a lock may belong to a server that is just starting, if it is so new."""

log = logging.getLogger("loupe")


@dataclass(frozen=True)
class Home:
    """The folder of one server. It is in use while any process has *lock* open."""

    path: Path
    lock: int


@contextmanager
def private_home() -> Iterator[Home]:
    """A new folder, removed at the end. What servers left that were killed is removed first.

    It is in the temporary folder, or in shared memory if that is full.
    """
    folders = [*_temporary(), SHARED_MEMORY]
    for folder in folders:
        clean(folder)
    home = _make(folders)
    try:
        yield home
    finally:
        shutil.rmtree(home.path, ignore_errors=True)


def _temporary() -> list[Path]:
    """The temporary folder; nothing if none can be written to."""
    try:
        return [Path(tempfile.gettempdir())]
    except FileNotFoundError:
        return []


def _make(folders: list[Path]) -> Home:
    reasons = []
    for folder in folders:
        path = None
        try:
            path = Path(tempfile.mkdtemp(prefix=HOME_PREFIX, dir=folder))
            for inside in ("metrics", "tmp"):
                (path / inside).mkdir()
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Home(path, lock)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
    tried = "; ".join(reasons)
    raise ConfigError(
        f"no folder for temporary files can be used ({tried}); make room there, or name another"
        " one in TMPDIR"
    )


def clean(folder: Path) -> None:
    """Remove from *folder* what servers of this user left that run no more."""
    for path in folder.glob(f"{HOME_PREFIX}*"):
        try:
            found = path.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if mine and _is_left(path, made=found.st_mtime):
                shutil.rmtree(path, ignore_errors=True)
                log.info("removed %s, left by a server that was killed", path)
        except OSError:
            continue


def _is_left(path: Path, *, made: float) -> bool:
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - made > NEW_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
