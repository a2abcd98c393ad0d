"""What a request must pass before a route sees it: its key, its client's rate, and room for its
body.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Message, Receive, Scope

from models.errors import Forbidden, RateLimited, TooBusy, Unauthorised
from service.gate.keys import LOOK_AGAIN_S, KeyRing
from service.gate.rate_limit import RateLimit, network_of
from service.observe.logs import BODY_BYTES_SCOPE_KEY, CLIENT_SCOPE_KEY
from service.observe.metrics import KEYS_UNREADABLE
from service.settings import ServiceSettings, metrics_folder

COSTLY_PER_S = 10.0
COSTLY_BURST = 100
"""Wrong keys, and scrapes of `/metrics`, that one address has a second, and at once.

Neither pays by a rate of its own.
"""
OPEN_PATHS = re.compile(
    r"/|/docs(/.*)?|/openapi\.json|/ping|/v2/health/(live|ready)|/livez|/readyz|/healthz"
)
"""Ask for no key and count for no rate: pages, their documents, and probes."""
METRICS_PATH = "/metrics"
HELD_SCOPE_KEY = "loupe.held"
"""Where admission leaves the request's `Held`, for what a route reads from elsewhere on its behalf."""


@dataclass(frozen=True)
class Access:
    """Who may do what.

    Without *keys* everybody may do everything but what a key with the scope `admin` is for.
    """

    keys: KeyRing | None = None
    metrics_need_admin: bool = False
    costly: RateLimit | None = None
    """Bounds wrong keys and scrapes for each address."""

    def scope_for(self, path: str) -> str | None:
        """The scope that a request for *path* needs; None if it needs no key."""
        if path == METRICS_PATH:
            return "admin" if self.metrics_need_admin else None
        if OPEN_PATHS.fullmatch(path):
            return None
        return "predict" if self.keys is not None else None

    def check(self, path: str, secret: str | None, *, address: str) -> str | None:
        """The name of the key *secret*, which may ask for *path*; None where no key is needed.

        Raises `Unauthorised` or `Forbidden`, `RateLimited` for an *address* that sent too many
        wrong keys, whatever it sends now.
        """
        needed = self.scope_for(path)
        if needed is None:
            return None
        if self.keys is None:
            raise Forbidden(
                "this route needs an API key with the scope 'admin', and the service has no keys;"
                " set LOUPE_API_KEYS_FILE"
            )
        if not secret:
            raise Unauthorised(
                "no API key; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )
        guesses = f"key {address}"
        if self.costly is not None:
            _require_patience(
                self.costly.wait_s(guesses),
                f"{address or 'this client'} sent too many wrong API keys",
            )
        key = self.keys.owner(secret)
        if key is None:
            if self.costly is not None:
                self.costly.take(guesses)
            raise Unauthorised("the API key is not known; it may have been removed")
        if needed not in key.scopes:
            raise Forbidden(
                f"the API key of {key.name!r} has the scope {', '.join(key.scopes) or 'none'}; this"
                f" route needs {needed!r}"
            )
        return key.name

    def check_scrapes(self, address: str) -> None:
        """Count a scrape of *address*. Raises `RateLimited` where it has too many."""
        if self.costly is not None:
            _require_patience(
                self.costly.take(f"metrics {address}"),
                f"{address or 'this client'} asks for {METRICS_PATH} more often than it may",
            )


class Gate:
    """What every request must pass, and what it may hold meanwhile.

    *max_inflight_bytes* bounds the bodies that this process holds at a time. Once *ending* says so,
    answers close their connection, so that clients come back elsewhere.
    """

    def __init__(
        self,
        *,
        access: Access,
        rate: RateLimit | None,
        max_inflight_bytes: int,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ending = ending
        self._access = access
        self._rate = rate
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._request_s = 1.0

    def admit(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Leave in *scope* who asks.

        Raises `LoupeError` for a request that may not pass, by its path and *headers*.
        """
        path: str = scope["path"]
        address = network_of(scope["client"][0]) if scope.get("client") else ""
        name = self._access.check(path, _secret(headers), address=address)
        if name is not None:
            scope[CLIENT_SCOPE_KEY] = name
        if path == METRICS_PATH:
            self._access.check_scrapes(address)
        elif self._rate is not None and not OPEN_PATHS.fullmatch(path):
            client = name or address
            _require_patience(
                self._rate.take(client), f"{client or 'this client'} asks more often than it may"
            )
        declared = headers.get("content-length", "0")
        self._check_room(int(declared) if declared.isascii() and declared.isdigit() else 0)

    async def watch_keys(self) -> None:
        """Keep the keys current, also while nobody asks. Runs until it is cancelled."""
        while (keys := self._access.keys) is not None:
            await asyncio.sleep(LOOK_AGAIN_S)
            keys.look()

    def take(self, more_bytes: int) -> None:
        """Count *more_bytes* of a body as held. Raises `TooBusy` where they find no room."""
        self._check_room(more_bytes)
        self._inflight_bytes += more_bytes

    def give_back(self, held_bytes: int, *, seconds: float) -> None:
        """A request that held so much for *seconds* is over."""
        self._inflight_bytes -= held_bytes
        # Room comes as requests end: that takes about as long as one.
        self._request_s += 0.1 * (seconds - self._request_s)

    def _check_room(self, more_bytes: int) -> None:
        # One body of any size is taken: its own limit is the route's to apply.
        if self._inflight_bytes and self._inflight_bytes + more_bytes > self._max_inflight_bytes:
            raise TooBusy(
                f"bodies of {self._inflight_bytes:,} bytes are being held and"
                f" {self._max_inflight_bytes:,} may; try again in {self._request_s:.1f} s",
                retry_after_s=self._request_s,
            )


class Held:
    """The body of one request: it counts for as long as the request lasts, by what came of it and
    not by what it declares.
    """

    def __init__(self, gate: Gate, scope: Scope, receive: Receive) -> None:
        self._gate = gate
        self._scope = scope
        self._receive = receive
        self._bytes = 0
        self._started = time.monotonic()

    async def receive(self) -> Message:
        """The next message of the client. Raises `TooBusy` where its bytes find no room."""
        message = await self._receive()
        size = len(message.get("body", b""))
        if size:
            self.hold(size)
            self._scope[BODY_BYTES_SCOPE_KEY] = self._bytes
        return message

    def hold(self, more_bytes: int) -> None:
        """Count *more_bytes* for as long as the request lasts.

        Raises `TooBusy` where they find no room.
        """
        self._gate.take(more_bytes)
        self._bytes += more_bytes

    def let_go(self) -> None:
        """The request is over."""
        if self._bytes:
            self._gate.give_back(self._bytes, seconds=time.monotonic() - self._started)


def open_gate(settings: ServiceSettings, *, ending: Callable[[], bool]) -> Gate:
    """The gate that *settings* describe.

    Raises `ConfigError` for a file of API keys that cannot be read.
    """
    keys = (
        KeyRing(Path(settings.api_keys_file), watch=KEYS_UNREADABLE.set)
        if settings.api_keys_file
        else None
    )
    costly = RateLimit(rate_per_s=COSTLY_PER_S, burst=COSTLY_BURST, path=_shared("costly"))
    access = Access(keys, metrics_need_admin=settings.metrics_access == "admin", costly=costly)
    return Gate(
        access=access,
        rate=_rate_limit(settings),
        max_inflight_bytes=settings.max_inflight_bytes,
        ending=ending,
    )


def _rate_limit(settings: ServiceSettings) -> RateLimit | None:
    if settings.rate_limit_per_s == 0.0:
        return None
    burst = settings.rate_limit_burst or max(1, int(settings.rate_limit_per_s))
    return RateLimit(rate_per_s=settings.rate_limit_per_s, burst=burst, path=_shared("rates"))


def _shared(name: str) -> Path | None:
    """A file that all workers of this server share; None outside a server."""
    folder = metrics_folder()
    return Path(folder) / name if folder else None


def _require_patience(wait_s: float, what: str) -> None:
    """Raises `RateLimited` if *what* must wait."""
    if wait_s > 0.0:
        raise RateLimited(f"{what}; try again in {wait_s:.2f} s", retry_after_s=wait_s)


def _secret(headers: Mapping[str, str]) -> str | None:
    """The API key that came with the request."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    return headers["x-api-key"].strip() if "x-api-key" in headers else None
