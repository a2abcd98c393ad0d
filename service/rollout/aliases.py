"""What is to be served: the settings' references, and what the store's aliases mean now."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ConfigError, UnknownModel
from models.store.store import PRODUCTION, ModelRef, Store

EVERY_MODEL = "*"
RETRY_FIRST_S, RETRY_MOST_S = 5.0, 300.0
"""Waits before what failed is tried again; each is twice the one before. To open a model takes seconds of all cores."""


@dataclass(frozen=True)
class Wanted:
    """One model to serve, as the settings ask for it."""

    name: str
    primary: str
    """What answers by default, as a reference's end: `@production`, which is followed, or `:3`, which stays."""
    others: tuple[str, ...] = ()
    """Likewise, what answers when it is asked for; an alias that is not there is waited for."""

    @property
    def is_followed(self) -> bool:
        """The primary version is that of an alias."""
        return self.primary.startswith("@")

    def meant(self, store: Store) -> dict[str, ModelRef]:
        """What the primary and the others mean now.

        Raises `UnknownModel`, `UnknownVersion` or `StoreError` for the primary.
        """
        found = {self.primary: store.resolve(self.name + self.primary)}
        aliases = store.aliases(self.name)
        for other in self.others:
            if other.startswith(":") or other[1:] in aliases:
                found[other] = store.resolve(self.name + other)
        return found


def wanted_models(setting: str, store: Store, *, extra_aliases: Sequence[str] = ()) -> list[Wanted]:
    """The models that the *setting* `LOUPE_MODEL` asks for, the default one first; *extra_aliases*
    are opened beside each that follows an alias.

    Raises `UnknownModel` for an empty store, `ConfigError` for a setting that makes no sense.
    """
    names = store.names()
    if not names:
        raise UnknownModel(
            f"the store {store.root} has no model; `make demo` makes one, `loupe publish PACKAGE"
            " --name NAME` puts yours there"
        )
    if not setting and len(names) > 1:
        raise ConfigError(
            f"the store {store.root} has several models ({', '.join(names)}); say which with"
            f" --model or LOUPE_MODEL, or {EVERY_MODEL} for all of them"
        )
    references = (
        names if setting in ("", EVERY_MODEL) else [part.strip() for part in setting.split(",")]
    )
    ends: dict[str, list[str]] = {}
    for reference in references:
        name, end = _split(reference)
        if end in ends.setdefault(name, []):
            raise ConfigError(f"LOUPE_MODEL {setting!r} names {name}{end} twice")
        ends[name].append(end)
    return [_wanted(name, found, extra_aliases) for name, found in ends.items()]


def _split(reference: str) -> tuple[str, str]:
    """Name and end of *reference*: `ants` is `ants@production`."""
    for mark in "@:":
        name, found, rest = reference.partition(mark)
        if found:
            return name, mark + rest
    return reference, f"@{PRODUCTION}"


def _wanted(name: str, ends: list[str], extra_aliases: Sequence[str]) -> Wanted:
    primary, *others = ends
    if primary.startswith("@"):
        others += [f"@{alias}" for alias in extra_aliases if alias and f"@{alias}" not in ends]
    return Wanted(name, primary, tuple(dict.fromkeys(others)))


class AliasWatch:
    """Says which models' aliases were moved since it was asked last. Costs one `stat` a model."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self._store = store
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        for name in names:
            self._stamps[name] = self._stamp(name)

    def moved(self) -> list[str]:
        """Names whose `aliases.json` is another one than it was at the last call."""
        found = []
        for name, before in self._stamps.items():
            # Taken before anything is read: a change during the reading is seen by the next call.
            now = self._stamp(name)
            if now != before:
                self._stamps[name] = now
                found.append(name)
        return found

    def _stamp(self, name: str) -> tuple[int, ...] | None:
        try:
            return self._store.stamp(name)
        except OSError:
            # A network file system that is away: what is served goes on being served.
            return self._stamps.get(name)


class Retry:
    """Says when to try again what failed."""

    def __init__(self) -> None:
        self._wait_s: float = 0.0
        self._due_at: float = math.inf

    @property
    def is_due(self) -> bool:
        """It failed, and its wait is over."""
        return time.monotonic() >= self._due_at

    def failed(self) -> None:
        """It was tried and failed: wait, longer each time."""
        self._wait_s = min(max(RETRY_FIRST_S, 2.0 * self._wait_s), RETRY_MOST_S)
        self._due_at = time.monotonic() + self._wait_s

    def succeeded(self) -> None:
        """Nothing is left to try."""
        self._wait_s, self._due_at = 0.0, math.inf


class Complaints:
    """Tells what has not been said: what fails the same way again and again gets one line in the
    log, until it went well.
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def is_new(self, subject: str, error: Exception) -> bool:
        """Whether *subject* did not fail by this *error* the last time."""
        reason = f"{type(error).__name__}: {error}"
        before, self._said[subject] = self._said.get(subject), reason
        return reason != before

    def settled(self, subject: str) -> None:
        """*subject* went well."""
        self._said.pop(subject, None)
