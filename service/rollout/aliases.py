"""The models to serve: what the settings ask for, and which versions the store's aliases mean."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ConfigError, UnknownModel
from models.store.store import PRODUCTION, ModelRef, Store
from service.settings import ServiceSettings

EVERY_MODEL = "*"
RETRY_FIRST_S, RETRY_MOST_S = 5.0, 300.0
"""Waits before a failed model is tried again, each twice the one before.

Opening a model takes seconds of all cores."""


@dataclass(frozen=True)
class ModelSelection:
    """One model to serve, as the settings ask for it."""

    name: str
    primary: str
    """The end of the reference that answers by default: `@production` is followed, `:3` stays."""
    others: tuple[str, ...] = ()
    """The ends that answer when a client asks for them. An alias may be missing at first."""

    def resolve(self, store: Store) -> dict[str, ModelRef]:
        """The version of each end now.

        Raises `UnknownModel`, `UnknownVersion` or `StoreError` for the primary.
        """
        found = {self.primary: store.resolve(self.name + self.primary)}
        aliases = store.aliases(self.name)
        for other in self.others:
            if other.startswith(":") or other[1:] in aliases:
                found[other] = store.resolve(self.name + other)
        return found


def selected_models(settings: ServiceSettings) -> list[ModelSelection]:
    """The models that *settings* ask for, the default one first.

    Canary and shadow are opened beside each model that follows an alias. Raises `UnknownModel` for
    an empty store, `ConfigError` for a setting that makes no sense.
    """
    store, setting = Store(settings.store), settings.model
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
    found: dict[str, list[str]] = {}
    for reference in references:
        # `ants` is `ants@production`.
        name = re.split("[@:]", reference, maxsplit=1)[0]
        end = reference[len(name) :] or f"@{PRODUCTION}"
        if end in found.setdefault(name, []):
            raise ConfigError(f"LOUPE_MODEL {setting!r} names {name}{end} twice")
        found[name].append(end)
    extra = [f"@{alias}" for alias in (settings.canary_alias, settings.shadow_alias) if alias]
    return [
        ModelSelection(
            name,
            ends[0],
            tuple(
                end
                for end in dict.fromkeys((*ends[1:], *(extra if ends[0].startswith("@") else ())))
                if end != ends[0]
            ),
        )
        for name, ends in found.items()
    ]


class AliasWatch:
    """Finds the models whose aliases were moved since the last call. Costs one `stat` a model."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self._store = store
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        self._stamps = {name: self._stamp(name) for name in names}

    def moved(self) -> list[str]:
        """Names whose `aliases.json` has changed since the last call."""
        # Before anything is read: a change during the reading is seen by the next call.
        before, self._stamps = self._stamps, {name: self._stamp(name) for name in self._stamps}
        return [name for name, stamp in self._stamps.items() if stamp != before[name]]

    def _stamp(self, name: str) -> tuple[int, ...] | None:
        try:
            return self._store.stamp(name)
        except OSError:
            # A network file system that is away changes nothing.
            return self._stamps.get(name)


class Retry:
    """When to try again: the wait doubles with each failure."""

    def __init__(self) -> None:
        self._wait_s: float = 0.0
        self._due_at: float = math.inf

    @property
    def is_due(self) -> bool:
        """The last try failed, and its wait is over."""
        return time.monotonic() >= self._due_at

    def failed(self) -> None:
        """A try failed: wait longer than the last time."""
        self._wait_s = min(max(RETRY_FIRST_S, 2.0 * self._wait_s), RETRY_MOST_S)
        self._due_at = time.monotonic() + self._wait_s

    def succeeded(self) -> None:
        """A try succeeded: there is nothing to try again."""
        self._wait_s, self._due_at = 0.0, math.inf


class Complaints:
    """What was logged: a failure that repeats gets one line, until the subject succeeds."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def is_new(self, subject: str, error: Exception) -> bool:
        """Whether the last failure of *subject* was another one than *error*."""
        reason = f"{type(error).__name__}: {error}"
        before, self._reasons[subject] = self._reasons.get(subject), reason
        return reason != before

    def succeeded(self, subject: str) -> None:
        """Forget the failures of *subject*."""
        self._reasons.pop(subject, None)
