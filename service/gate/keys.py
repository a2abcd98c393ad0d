"""API keys: a file of their hashes, and who a key belongs to. The keys themselves are kept nowhere.

A key is 256 random bits, so its plain SHA-256 tells nothing and cannot be guessed. Slow password
hashes are for what people make up. The file is JSON and is replaced in one step. A running service
looks at it every second, so a removed key is refused without a restart. A file that cannot be read
is bridged for `TRUST_UNREAD_S` with the keys that were read last; after that no key is trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.atomic_files import locked, sync_folder, user_name
from models.errors import ConfigError, NotReady
from models.files import parse_json
from models.messages import os_error_text
from models.store.names import NAME_RULE, is_name

log = logging.getLogger("loupe")

SCOPES = ("predict", "admin")
PREFIX = "loupe_"
"""Begins every key, so that scanners for leaked secrets can know one."""
LOOK_AGAIN_S = 1.0
"""How often the file is looked at for a change."""
TRUST_UNREAD_S = 60.0
"""How long the keys that were read last are trusted while the file cannot be read."""

Stamp = tuple[int, int, int, int]
"""Changes with the content, owner, mode or identity of a file."""


@dataclass(frozen=True)
class ApiKey:
    """What is known of one key."""

    name: str
    scopes: tuple[str, ...]
    sha256: str
    """Of the whole key, in hexadecimal."""
    created: str
    """Date and time, ISO 8601 in UTC."""


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in the file *path*. Raises `ConfigError` if it is not there or is no file of keys."""
    found = _read(path, known=None)
    assert found is not None
    return _parse(found[1], path)


def add_key(path: Path, *, name: str, scopes: tuple[str, ...]) -> str:
    """A new key for *name*, put into the file *path*, which is made if it is not there.

    Only this once can the key be seen.

    Raises `ConfigError` if *name* cannot be used or has a key, or if the file would change its
    owner.
    """
    if not is_name(name):
        raise ConfigError(f"key name {name!r} cannot be used: expected {NAME_RULE}")
    secret = PREFIX + secrets.token_urlsafe(32)
    with _changing(path) as file:
        keys = read_keys(file) if file.exists() else []
        if any(key.name == name for key in keys):
            raise ConfigError(
                f"{path} has a key of {name!r} already; `loupe keys remove {name}` takes it away"
            )
        _write(
            file,
            [
                *keys,
                ApiKey(
                    name,
                    scopes,
                    _digest(secret).hex(),
                    datetime.now(UTC).isoformat(timespec="seconds"),
                ),
            ],
        )
    return secret


def remove_key(path: Path, *, name: str) -> None:
    """Take the key of *name* out of the file *path*.

    Raises `ConfigError` if it has none, or if the file would change its owner.
    """
    with _changing(path) as file:
        keys = read_keys(file)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise ConfigError(
                f"{path} has no key of {name!r}; it has"
                f" {', '.join(key.name for key in keys) or 'none'}"
            )
        _write(file, left)


class KeyRing:
    """The keys of a file as they are now. Raises `ConfigError` if they cannot be read at first.

    *watch* is told at each look whether the file cannot be read.
    """

    def __init__(
        self, path: Path, *, watch: Callable[[bool], None] = lambda unreadable: None
    ) -> None:
        self._path = path
        self._watch = watch
        self._keys: dict[bytes, ApiKey] = {}
        self._stamp: Stamp | None = None
        self._problem = ""
        self._look()
        self._read_s = time.monotonic()
        self._look_again_s = self._read_s + LOOK_AGAIN_S
        watch(False)

    def owner(self, secret: str) -> ApiKey | None:
        """The key that *secret* is; None if it is none.

        Raises `NotReady` once the file could not be read for too long. Keys are found by their
        SHA-256, so the time that it takes tells nothing of a key.
        """
        self.look()
        if time.monotonic() - self._read_s > TRUST_UNREAD_S:
            raise NotReady(
                "the service cannot read its API keys and trusts none until it can; its log has the"
                " reason",
                retry_after_s=LOOK_AGAIN_S,
            )
        return self._keys.get(_digest(secret))

    def look(self) -> None:
        """Look at the file, if the last look is a second ago.

        Asked on a timer too: else a quiet service would count the time without requests as time
        without keys.
        """
        now_s = time.monotonic()
        if now_s >= self._look_again_s:
            self._look_again_s = now_s + LOOK_AGAIN_S
            self._refresh(now_s)

    def _refresh(self, now_s: float) -> None:
        try:
            self._look()
        except ConfigError as error:
            self._failed(str(error), unread_s=now_s - self._read_s)
        else:
            if self._problem:
                log.info("the file of API keys %s can be read again", self._path)
            self._problem, self._read_s = "", now_s
        self._watch(bool(self._problem))

    def _look(self) -> None:
        """Take what the file holds if it changed.

        Raises `ConfigError`; it is tried again at the next look.
        """
        found = _read(self._path, known=self._stamp)
        if found is not None:
            stamp, content = found
            self._keys = {bytes.fromhex(key.sha256): key for key in _parse(content, self._path)}
            self._stamp = stamp

    def _failed(self, reason: str, *, unread_s: float) -> None:
        ended = unread_s > TRUST_UNREAD_S
        problem = f"{reason}. " + (
            "No key is trusted until then"
            if ended
            else f"The keys read last are trusted for {TRUST_UNREAD_S:g} s at most"
        )
        # Once for each reason and once when trust ends, not every second.
        if problem != self._problem:
            log.error("API keys: %s", problem)
        self._problem = problem


def _read(path: Path, *, known: Stamp | None) -> tuple[Stamp, bytes] | None:
    """The content of *path* and its stamp; None where the stamp is *known*. Raises `ConfigError`.

    Opened even where nothing changed: a file that may no longer be read still has a stamp.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "it is not a plain file")
            stamp = (state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size)
            if stamp == known:
                return None
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                return stamp, stream.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(
            f"the file of API keys {path} cannot be read: {error.strerror}; `loupe keys add NAME"
            f" --file {path}` makes one"
        ) from error


def _parse(content: bytes, path: Path) -> list[ApiKey]:
    """The keys in *content*, read from *path*. Raises `ConfigError`."""
    try:
        document = parse_json(content.decode("utf-8-sig"))
        keys = [ApiKey(**{**one, "scopes": tuple(one["scopes"])}) for one in document["keys"]]
        wrong = [key.name for key in keys if not _is_sound(key)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no file of API keys: {error}; restore it, or remove it and `loupe keys add`"
            " makes another"
        ) from error
    if wrong:
        raise ConfigError(
            f"{path}: the key of {wrong[0]!r} has an unknown scope or no SHA-256; scopes are"
            f" {', '.join(SCOPES)}"
        )
    return keys


def _is_sound(key: ApiKey) -> bool:
    whole = len(bytes.fromhex(key.sha256)) == hashlib.sha256().digest_size
    return isinstance(key.name, str) and whole and set(key.scopes) <= set(SCOPES)


@contextmanager
def _changing(path: Path) -> Iterator[Path]:
    """The file that *path* is or links to, for one to change at a time.

    Raises `ConfigError` where it cannot be changed.
    """
    file = Path(os.path.realpath(path))
    try:
        with locked(_lock(file)):
            yield file
    except OSError as error:
        raise ConfigError(
            f"{os_error_text(error, error.filename or file)}; the keys are as they were"
        ) from error


def _write(path: Path, keys: list[ApiKey]) -> None:
    """Replace the file *path* at once. A new file is its maker's alone.

    Owner, group, mode and access list stay as they are. The caller holds the lock. Raises
    `ConfigError`, and leaves the old file as it is, where this user may not keep the owner.
    """
    content = (json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n").encode()
    # Readable by its owner alone until it is the old file's owner's: hashes tell nothing, but
    # names do.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if path.exists():
                _keep_access(path, Path(name))
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _keep_access(path: Path, replacement: Path) -> None:
    """Give *replacement* the owner, group and mode of *path*, and the lock its owner and group."""
    state = path.stat()
    try:
        for one in (replacement, _lock(path)):
            found = one.stat()
            if (found.st_uid, found.st_gid) != (state.st_uid, state.st_gid):
                os.chown(one, state.st_uid, state.st_gid)
    except OSError as error:
        raise ConfigError(
            f"{path} belongs to uid {state.st_uid} and gid {state.st_gid}, and {user_name()} may"
            f" not keep it so ({error.strerror}); nothing was changed: run the command as that user"
            " or as root"
        ) from error
    # Access lists too. The times that it copies are set anew by what is written next.
    shutil.copystat(path, replacement)


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogateescape")).digest()
