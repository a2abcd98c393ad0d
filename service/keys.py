"""API keys: a file of their hashes, and who a key belongs to. The keys themselves are kept nowhere.

A key is 256 random bits, so that a plain SHA-256 of it tells nothing and cannot be guessed at; slow password hashes are for what people
make up. The file is JSON, replaced in one step, and read again when it changed: a removed key is refused a second later, without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.durable import locked, storage_errors, write_durably
from models.errors import ConfigError
from models.names import NAME_RULE, is_name

log = logging.getLogger("loupe")

SCOPES = ("predict", "admin")
PREFIX = "loupe_"
"""Begins every key, so that scanners for leaked secrets can know one."""
LOOK_AGAIN_S = 1.0
"""How often the file is looked at for a change."""


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
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        keys = [ApiKey(**{**one, "scopes": tuple(one["scopes"])}) for one in document["keys"]]
        wrong = [key.name for key in keys if not set(key.scopes) <= set(SCOPES) or len(bytes.fromhex(key.sha256)) != hashlib.sha256().digest_size]
    except OSError as error:
        raise ConfigError(f"the file of API keys {path} cannot be read: {error.strerror}; `loupe keys add NAME --file {path}` makes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of API keys: {error}; `loupe keys add` writes one") from error
    if wrong:
        raise ConfigError(f"{path}: the key of {wrong[0]!r} has an unknown scope or no SHA-256; scopes are {', '.join(SCOPES)}")
    return keys


def add_key(path: Path, *, name: str, scopes: tuple[str, ...]) -> str:
    """A new key for *name*, put into the file *path*, which is made if it is not there. Only this once can the key be seen.

    Raises `ConfigError` if *name* cannot be used or has a key.
    """
    if not is_name(name):
        raise ConfigError(f"key name {name!r} cannot be used: expected {NAME_RULE}")
    secret = PREFIX + secrets.token_urlsafe(32)
    with storage_errors(path), locked(_lock(path)):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise ConfigError(f"{path} has a key of {name!r} already; `loupe keys remove {name}` takes it away")
        _write(path, [*keys, ApiKey(name, scopes, _digest(secret).hex(), datetime.now(UTC).isoformat(timespec="seconds"))])
    return secret


def remove_key(path: Path, *, name: str) -> None:
    """Take the key of *name* out of the file *path*. Raises `ConfigError` if it has none."""
    with storage_errors(path), locked(_lock(path)):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise ConfigError(f"{path} has no key of {name!r}; it has {', '.join(key.name for key in keys) or 'none'}")
        _write(path, left)


class KeyRing:
    """The keys of a file as they are now. Raises `ConfigError` if they cannot be read at first; later it keeps those that it has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = _by_digest(read_keys(path))
        self._changed = _changed(path)
        self._look_again = time.monotonic() + LOOK_AGAIN_S

    def owner(self, secret: str) -> ApiKey | None:
        """The key that *secret* is; None if it is none. Takes as long for a near miss as for any other."""
        self._refresh()
        given = _digest(secret)
        found = None
        for digest, key in self._keys:
            if hmac.compare_digest(digest, given):
                found = key
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + LOOK_AGAIN_S
        changed = _changed(self._path)
        if changed == self._changed:
            return
        self._changed = changed
        try:
            self._keys = _by_digest(read_keys(self._path))
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error)  # noqa: TRY400 - the reason is in the message


def _by_digest(keys: list[ApiKey]) -> list[tuple[bytes, ApiKey]]:
    return [(bytes.fromhex(key.sha256), key) for key in keys]


def _changed(path: Path) -> tuple[int, int]:
    """Differs whenever the file was replaced; zeros if it is not there."""
    try:
        state = path.stat()
    except OSError:
        return (0, 0)
    return (state.st_mtime_ns, state.st_ino)


def _write(path: Path, keys: list[ApiKey]) -> None:
    write_durably(path, (json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n").encode())
    os.chmod(path, 0o600)  # noqa: PTH101 - hashes tell nothing, but names do


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogateescape")).digest()
