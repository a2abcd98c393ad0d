"""How many connections one worker keeps, and which one is closed when there are too many."""

from __future__ import annotations

import asyncio
import logging
import resource
import time

log = logging.getLogger("loupe")

MOST = 16_384
"""A connection takes about 15 KB while it is idle, and up to 80 KB while its request is read. With
more connections, memory runs out first."""
OWN = 40
"""Descriptors that a worker needs besides its connections: it has 30 open, and reads its store."""
LOG_EVERY_S = 60.0


class ConnectionLimit:
    """The connections of one worker, by their transports.

    If *most* are open, a new one replaces the one that has been idle longest. If none is idle, new
    connections are accepted for probes until there are *at_all*.
    """

    def __init__(self, most: int, *, at_all: int) -> None:
        self._most = most
        self._at_all = at_all
        self._open: set[asyncio.Transport] = set()
        self._idle: dict[asyncio.Transport, None] = {}
        """In the order in which they became idle."""
        self._logged = -LOG_EVERY_S

    @property
    def crowded(self) -> bool:
        """Whether more than *most* connections are open."""
        return len(self._open) > self._most

    def opened(self, connection: asyncio.Transport) -> None:
        """Count *connection*, idle until its first request. Closes one if there are too many."""
        self._open.add(connection)
        self._idle[connection] = None
        if self.crowded:
            self._warn()
            longest = next(iter(self._idle))
            if longest is not connection or len(self._open) > self._at_all:
                self.closed(longest)
                longest.abort()

    def closed(self, connection: asyncio.Transport) -> None:
        """*connection* is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def busy(self, connection: asyncio.Transport) -> None:
        """*connection* has a request."""
        self._idle.pop(connection, None)

    def idle(self, connection: asyncio.Transport) -> None:
        """*connection* has no request any more."""
        self._idle[connection] = None

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.warning(
                "%d connections are open, the most allowed: each new one closes the one idle"
                " longest. Find out who opens them; if the limit of open files is low, raise it"
                " (ulimit -n)",
                len(self._open),
            )


def connection_limit() -> ConnectionLimit:
    """Three quarters of the free file descriptors for connections, and an eighth more for probes.

    Raises the soft limit of open files to the hard one first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError) as error:
        # macOS says it has no limit, and has one.
        log.warning("the soft limit of open files stays %d: %s", soft, error)
    descriptors = min(soft, 2 * MOST) if soft != resource.RLIM_INFINITY else 2 * MOST
    descriptors = max(descriptors - OWN, 8)
    return ConnectionLimit(
        min(descriptors * 3 // 4, MOST), at_all=min(descriptors * 7 // 8, MOST + MOST // 6)
    )
