"""Rates of clients, counted once for all workers of a server.

A token bucket in the form of the generic cell rate algorithm, which needs one time for each client:
when its bucket will be full again. The times lie in a file that the workers share, so that a limit
means what it says however connections are spread over them. Its size is fixed: where clients are
too many for it, those that were gone longest are forgotten. Source: ITU-T I.371, appendix on GCRA.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

SLOTS = 8192
PROBES = 8
"""Slots in which a client may lie."""
_SLOT = struct.Struct("<8sd")
"""Hash of the client, and the time at which its bucket is full again on the clock of `time.monotonic`, which all processes share."""
_EMPTY = bytes(8)


def network_of(address: str) -> str:
    """What counts as one client at *address*: an IPv4 address, or the /64 network of an IPv6 one.

    One customer gets such a network whole.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


class RateLimit:
    """At most *rate_per_s* requests a second of each client, and *burst* at once.

    *path* is the shared file; None counts for this process.
    """

    def __init__(
        self,
        *,
        rate_per_s: float,
        burst: int,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = 1.0 / rate_per_s
        self._slack_s = burst * self._interval_s
        self._clock = clock
        self._file = -1
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, SLOTS * _SLOT.size)
        self._table = mmap.mmap(self._file, SLOTS * _SLOT.size)

    def take(self, client: str) -> float:
        """0 if *client* may ask now, which is counted; otherwise the seconds until it may, and
        nothing is counted.
        """
        return self._alone(client, count=True)

    def wait_s(self, client: str) -> float:
        """As `take`, but nothing is counted: for what is to be counted only once it went wrong."""
        return self._alone(client, count=False)

    def close(self) -> None:
        """Let go of the table."""
        self._table.close()
        if self._file >= 0:
            os.close(self._file)

    def _alone(self, client: str, *, count: bool) -> float:
        key = hashlib.blake2b(
            client.encode("utf-8", errors="surrogateescape"), digest_size=8
        ).digest()
        if self._file < 0:
            return self._take(key, count=count)
        # Held for some microseconds. The kernel lets go of it if a worker dies in them.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            return self._take(key, count=count)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take(self, key: bytes, *, count: bool) -> float:
        now = self._clock()
        offset, full_at = self._find(key)
        after = max(full_at, now) + self._interval_s
        wait_s = after - now - self._slack_s
        # A billionth of a second is the rounding of the sums above, and no time.
        if wait_s > 1e-9:
            return wait_s
        if count:
            _SLOT.pack_into(self._table, offset, key, after)
        return 0.0

    def _find(self, key: bytes) -> tuple[int, float]:
        """Where *key* lies or may be put, and when its bucket is full: in the past for one that is
        new.
        """
        first = int.from_bytes(key, "little") % SLOTS
        oldest, oldest_full_at = -1, float("inf")
        for step in range(PROBES):
            offset = (first + step) % SLOTS * _SLOT.size
            found, full_at = _SLOT.unpack_from(self._table, offset)
            if found == key:
                return offset, full_at
            if found == _EMPTY:
                return offset, 0.0
            if full_at < oldest_full_at:
                oldest, oldest_full_at = offset, full_at
        return oldest, 0.0
