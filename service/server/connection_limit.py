"""How many connections one worker keeps, and which one goes when there are too many."""

from __future__ import annotations

import logging
import resource
import time
from typing import Protocol

log = logging.getLogger("loupe")

MOST = 16_384
"""A connection takes some 15 KB while it waits and up to 80 KB while its request is read: beyond this, memory runs out first."""
LOG_EVERY_S = 60.0


class Evictable(Protocol):
    """A connection that can be closed because others need its place."""

    def evict(self) -> None:
        """Close it; no request of it is being answered."""


class ConnectionLimit:
    """The connections of one worker.

    Where *most* are open, each new one takes the place of the one that has waited longest for a
    request. If none waits, new connections are still taken, for probes, until there are *at_all*.
    """

    def __init__(self, most: int, *, at_all: int) -> None:
        self._most = most
        self._at_all = at_all
        self._open: set[Evictable] = set()
        self._waiting: dict[Evictable, None] = {}
        """In the order in which they began to wait."""
        self._logged = -LOG_EVERY_S

    @property
    def crowded(self) -> bool:
        """More connections are open than the usual share."""
        return len(self._open) > self._most

    def opened(self, connection: Evictable) -> bool:
        """Count *connection*, which waits for its first request.

        False: there is no room for it, close it.
        """
        self._open.add(connection)
        if self.crowded:
            self._tell()
            longest = next(iter(self._waiting), None)
            if longest is not None:
                self.closed(longest)
                longest.evict()
            elif len(self._open) > self._at_all:
                return False
        self._waiting[connection] = None
        return True

    def closed(self, connection: Evictable) -> None:
        """*connection* is gone."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def busy(self, connection: Evictable) -> None:
        """*connection* has a request."""
        self._waiting.pop(connection, None)

    def waits(self, connection: Evictable) -> None:
        """*connection* has no request any more."""
        self._waiting[connection] = None

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.warning(
                "%d connections are open, the most that the limit of open files allows: new ones"
                " take the place of those that wait longest; raise the limit (ulimit -n), or find"
                " out who opens them",
                len(self._open),
            )


def connection_limit() -> ConnectionLimit:
    """Three quarters of the descriptors for connections, and an eighth more for probes, after
    raising the soft limit to the hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            # macOS: it has no limit by name, and a smaller one in truth.
            log.warning("the soft limit of open files stays %d: %s", soft, error)
    descriptors = min(soft, 2 * MOST) if soft != resource.RLIM_INFINITY else 2 * MOST
    return ConnectionLimit(
        min(descriptors * 3 // 4, MOST), at_all=min(descriptors * 7 // 8, MOST + MOST // 6)
    )
