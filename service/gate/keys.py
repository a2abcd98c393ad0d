"""API keys: a file of their hashes, and the owner of a key. The keys themselves are stored nowhere.

A key is 256 random bits, so a plain SHA-256 of it cannot be guessed. The file is JSON and is
replaced in one step. A running service reads it every second, so a removed key is refused without a
restart. While the file cannot be read, the service trusts the keys it read last, for at most
`TRUST_UNREAD_S`. After that it trusts no key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.atomic_files import locked, sync_folder, user_name
from models.errors import ConfigError, NotReady
from models.files import read_file
from models.messages import os_error_text
from models.store.names import NAME_RULE, is_name
from service.validation import first_fault

log = logging.getLogger("loupe")

Scope = Literal["predict", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "loupe_"
"""Begins every key, so that scanners for leaked secrets recognise one."""
READ_AGAIN_S = 1.0
"""How often a running service reads the file."""
TRUST_UNREAD_S = 60.0
"""How long the keys read last are trusted while the file cannot be read."""


class ApiKey(BaseModel):
    """What the file holds about one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scopes: tuple[Scope, ...]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    """Of the whole key, in hexadecimal."""
    created: str
    """Date and time, ISO 8601 in UTC."""


class KeyFile(BaseModel):
    """The file of keys."""

    keys: list[ApiKey]


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in the file *path*. Raises `ConfigError` if it is missing or no file of keys."""
    return _parse(_content(path), path)


def add_key(path: Path, *, name: str, scopes: tuple[Scope, ...]) -> str:
    """Add a new key for *name* to the file *path*, made if missing. Returns the key.

    The key cannot be read again later. Raises `ConfigError` if *name* is invalid or has a key
    already, or if writing would change the owner of the file.
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
        now = datetime.now(UTC).isoformat(timespec="seconds")
        key = ApiKey(name=name, scopes=scopes, sha256=_digest(secret), created=now)
        _write(file, [*keys, key])
    return secret


def remove_key(path: Path, *, name: str) -> None:
    """Remove the key of *name* from the file *path*.

    Raises `ConfigError` if there is none, or if writing would change the owner of the file.
    """
    with _changing(path) as file:
        keys = {key.name: key for key in read_keys(file)}
        if name not in keys:
            raise ConfigError(f"{path} has no key of {name!r}; it has {', '.join(keys) or 'none'}")
        del keys[name]
        _write(file, list(keys.values()))


class KeyRing:
    """The keys in a file, kept current. Raises `ConfigError` if the first read fails.

    After each read, *watch* gets whether the file is unreadable.
    """

    def __init__(
        self, path: Path, *, watch: Callable[[bool], None] = lambda unreadable: None
    ) -> None:
        self._path = path
        self._watch = watch
        self._keys: dict[str, ApiKey] = {}
        self._content = b""
        self._problem = ""
        self._read()
        self._read_s = time.monotonic()
        self._read_again_s = self._read_s + READ_AGAIN_S
        watch(False)

    def owner(self, secret: str) -> ApiKey | None:
        """The entry of the key *secret*; None if it is unknown.

        Raises `NotReady` if the file was unreadable for too long. Keys are found by their SHA-256,
        so the time of the search tells an attacker nothing.
        """
        self.refresh()
        if time.monotonic() - self._read_s > TRUST_UNREAD_S:
            raise NotReady(
                "the service cannot read its API keys and trusts none until it can; its log has the"
                " reason",
                retry_after_s=READ_AGAIN_S,
            )
        return self._keys.get(_digest(secret))

    def refresh(self) -> None:
        """Read the file again, unless the last read was less than a second ago.

        A timer calls this too. Otherwise time without requests would count as time without keys.
        """
        now_s = time.monotonic()
        if now_s < self._read_again_s:
            return
        self._read_again_s = now_s + READ_AGAIN_S
        before, self._problem = self._problem, ""
        try:
            self._read()
            self._read_s = now_s
        except ConfigError as error:
            expired = now_s - self._read_s > TRUST_UNREAD_S
            trust = f"The keys read last are trusted for {TRUST_UNREAD_S:g} s at most"
            self._problem = f"{error}. {'No key is trusted until then' if expired else trust}"
        if self._problem and self._problem != before:
            log.error("API keys: %s", self._problem)
        elif before and not self._problem:
            log.info("the file of API keys %s can be read again", self._path)
        self._watch(bool(self._problem))

    def _read(self) -> None:
        content = _content(self._path)
        if content != self._content:
            self._keys = {key.sha256.lower(): key for key in _parse(content, self._path)}
            self._content = content


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise ConfigError(
            f"the file of API keys {path} cannot be read: {error.strerror}; `loupe keys add NAME"
            f" --file {path}` makes one"
        ) from error


def _parse(content: bytes, path: Path) -> list[ApiKey]:
    try:
        return KeyFile.model_validate_json(content.decode("utf-8-sig")).keys
    except ValueError as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else error
        raise ConfigError(
            f"{path} is not a file of API keys: {fault}; restore it, or remove it and `loupe keys"
            " add` makes another"
        ) from error


@contextmanager
def _changing(path: Path) -> Iterator[Path]:
    """Locks the file that *path* is or links to, and gives its real path.

    Raises `ConfigError` if the file cannot be changed.
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
    """Replace the file *path* in one step. Owner, group, mode and access list stay.

    Only its maker may read a new file. Raises `ConfigError`, and changes nothing, if this user may
    not keep the owner.
    """
    # mkstemp makes a file that only this user may read: the names of the keys are not public.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if path.exists():
                _keep_access(path, Path(name))
            stream.write(KeyFile(keys=keys).model_dump_json(indent=2).encode() + b"\n")
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
    # copystat copies access lists too.
    shutil.copystat(path, replacement)


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogateescape")).hexdigest()
