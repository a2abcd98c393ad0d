"""What a request must pass before a route sees it: its key, its rate, and room for its body."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.types import Message, Receive, Scope

from models.errors import Forbidden, RateLimited, TooBusy, Unauthorised
from service.gate.keys import READ_AGAIN_S, ApiKey, KeyRing
from service.gate.rate_limit import RateLimit, network_of
from service.observe.logs import BODY_BYTES_SCOPE_KEY, CLIENT_SCOPE_KEY
from service.observe.metrics import KEYS_UNREADABLE
from service.settings import ServiceSettings, metrics_folder

COSTLY_PER_S, COSTLY_BURST = 10.0, 100
"""Wrong keys, and scrapes of `/metrics`, that one address may send. The rate limit of clients does
not count them."""
OPEN_PATHS = re.compile(
    r"/|/page/.*|/docs(/.*)?|/openapi\.json|/ping|/v2/health/(live|ready)|/livez|/readyz|/healthz"
)
"""Need no key and count for no rate: pages, their documents, and probes."""
METRICS_PATH = "/metrics"
INSPECTING_PATHS = re.compile(r"/v1/features|/v1/preprocess|/v1/models/[^/]*/layers")
SCOPES_SCOPE_KEY = "loupe.key_scopes"
"""Where the gate leaves the scopes of the request's key."""
HELD_SCOPE_KEY = "loupe.held"
"""Where the application leaves the request's `Held`, for a route that fetches more for it."""


class Gate:
    """What every request must pass, and what it may hold meanwhile.

    Without *keys* everybody may ask for everything, except what needs the scope `admin`. *costly*
    limits wrong keys and scrapes of each address, *rate* the requests of each client.
    *max_inflight_bytes* limits the bodies that this process holds at a time. Once *ending* is true,
    answers close their connection, so that clients reconnect elsewhere.
    """

    def __init__(
        self,
        *,
        max_inflight_bytes: int,
        keys: KeyRing | None = None,
        metrics_need_admin: bool = False,
        inspection_needs_admin: bool = False,
        costly: RateLimit | None = None,
        rate: RateLimit | None = None,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ending = ending
        self._keys = keys
        self._metrics_need_admin = metrics_need_admin
        self._inspection_needs_admin = inspection_needs_admin
        self._costly = costly or RateLimit(rate_per_s=COSTLY_PER_S, burst=COSTLY_BURST)
        self._rate = rate
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._request_s = 1.0

    def admit(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Write the name of the request's key to *scope*.

        Raises `LoupeError` for a request that may not pass, by its path and *headers*.
        """
        path: str = scope["path"]
        address = network_of(scope["client"][0]) if scope.get("client") else ""
        client = address
        if (needed := self.scope_for(path)) is not None:
            key = self._key(needed, headers, address)
            client = scope[CLIENT_SCOPE_KEY] = key.name
            scope[SCOPES_SCOPE_KEY] = key.scopes
        if path == METRICS_PATH:
            _check_wait(
                self._costly.take(f"metrics {address}"),
                f"{address or 'this client'} asks for {METRICS_PATH} more often than it may",
            )
        elif self._rate is not None and not OPEN_PATHS.fullmatch(path):
            _check_wait(
                self._rate.take(client), f"{client or 'this client'} asks more often than it may"
            )
        declared = headers.get("content-length", "0")
        self._check_room(int(declared) if declared.isascii() and declared.isdigit() else 0)

    def scope_for(self, path: str) -> str | None:
        """The scope that a key must have for *path*; None if it needs no key."""
        if path == METRICS_PATH:
            return "admin" if self._metrics_need_admin else None
        if self._inspection_needs_admin and INSPECTING_PATHS.fullmatch(path):
            return "admin"
        return None if self._keys is None or OPEN_PATHS.fullmatch(path) else "predict"

    def _key(self, needed: str, headers: Mapping[str, str], address: str) -> ApiKey:
        """The key in *headers*, which must have the scope *needed*.

        Raises `RateLimited` if *address* sent too many wrong keys, whatever it sends now.
        """
        if self._keys is None:
            raise Forbidden(
                "this route needs an API key with the scope 'admin', and the service has no keys;"
                " set LOUPE_API_KEYS_FILE"
            )
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        secret = (bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()
        if not secret:
            raise Unauthorised(
                "no API key; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )
        guesses = f"key {address}"
        _check_wait(
            self._costly.take(guesses, count=False),
            f"{address or 'this client'} sent too many wrong API keys",
        )
        key = self._keys.owner(secret)
        if key is None:
            self._costly.take(guesses)
            raise Unauthorised("the API key is not known; it may have been removed")
        if needed not in key.scopes:
            raise Forbidden(
                f"the API key of {key.name!r} has the scope {', '.join(key.scopes) or 'none'}; this"
                f" route needs {needed!r}"
            )
        return key

    async def watch_keys(self) -> None:
        """Keep the keys current, even without requests. Runs until it is cancelled."""
        while self._keys is not None:
            await asyncio.sleep(READ_AGAIN_S)
            self._keys.refresh()

    def take(self, more_bytes: int) -> None:
        """Count *more_bytes* of a body as held. Raises `TooBusy` if there is no room."""
        self._check_room(more_bytes)
        self._inflight_bytes += more_bytes

    def give_back(self, held_bytes: int, *, seconds: float) -> None:
        """A request that held so much for *seconds* is over."""
        self._inflight_bytes -= held_bytes
        # Requests free room when they end, so the wait for room is about as long as a request.
        self._request_s += 0.1 * (seconds - self._request_s)

    def _check_room(self, more_bytes: int) -> None:
        # One body of any size is accepted: the route has its own limit.
        if self._inflight_bytes and self._inflight_bytes + more_bytes > self._max_inflight_bytes:
            raise TooBusy(
                f"request bodies hold {self._inflight_bytes:,} of"
                f" {self._max_inflight_bytes:,} bytes; try again in {self._request_s:.1f} s",
                retry_after_s=self._request_s,
            )


class Held:
    """The body of one request, counted by what arrived of it until the request is over."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive) -> None:
        self._gate = gate
        self._scope = scope
        self._receive = receive
        self._bytes = 0
        self._started = time.monotonic()

    async def receive(self) -> Message:
        """The next message of the client. Raises `TooBusy` if there is no room for its bytes."""
        message = await self._receive()
        if size := len(message.get("body", b"")):
            self.hold(size)
            self._scope[BODY_BYTES_SCOPE_KEY] = self._bytes
        return message

    def hold(self, more_bytes: int) -> None:
        """Count *more_bytes* until the request is over. Raises `TooBusy` if there is no room."""
        self._gate.take(more_bytes)
        self._bytes += more_bytes

    def release(self) -> None:
        """The request is over."""
        if self._bytes:
            self._gate.give_back(self._bytes, seconds=time.monotonic() - self._started)


def open_gate(settings: ServiceSettings, *, ending: Callable[[], bool]) -> Gate:
    """The gate that *settings* describe.

    Raises `ConfigError` for a file of API keys that cannot be read.
    """
    keys, rate, folder, per_s = None, None, metrics_folder(), settings.rate_limit_per_s
    # All workers of a server count in the same files.
    costly_file, rates_file = (
        (Path(folder) / "costly", Path(folder) / "rates") if folder else (None, None)
    )
    if settings.api_keys_file:
        keys = KeyRing(Path(settings.api_keys_file), watch=KEYS_UNREADABLE.set)
    if per_s:
        burst = settings.rate_limit_burst or max(1, int(per_s))
        rate = RateLimit(rate_per_s=per_s, burst=burst, path=rates_file)
    return Gate(
        max_inflight_bytes=settings.max_inflight_bytes,
        keys=keys,
        metrics_need_admin=settings.metrics_access == "admin",
        inspection_needs_admin=settings.inspection == "admin",
        costly=RateLimit(rate_per_s=COSTLY_PER_S, burst=COSTLY_BURST, path=costly_file),
        rate=rate,
        ending=ending,
    )


def may_inspect(scope: Scope, settings: ServiceSettings) -> bool:
    """Whether the client of the request in *scope*, which passed the gate, may look inside."""
    who = settings.inspection
    return who == "open" or (who == "admin" and "admin" in scope.get(SCOPES_SCOPE_KEY, ()))


def _check_wait(wait_s: float, what: str) -> None:
    """Raises `RateLimited` if *what* must wait."""
    if wait_s > 0.0:
        raise RateLimited(f"{what}; try again in {wait_s:.2f} s", retry_after_s=wait_s)
