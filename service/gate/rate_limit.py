"""Request rates of clients, counted together by all workers of a server.

Each client has a token bucket, as in the generic cell rate algorithm. It needs one number for each
client: the time when its bucket is full again. The times are in a file that the workers share, so
the limit holds however connections are spread over them. The file has a fixed size. If there are
too many clients for it, the longest inactive ones are forgotten. Source: ITU-T I.371, GCRA.
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
SLOTS_SEARCHED = 8
"""How many slots are searched for a client."""
_SLOT = struct.Struct("<8sd")
"""Hash of the client, and when its bucket is full again, by `time.monotonic`, which all processes
share."""


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address.

    One customer usually gets a whole such network.
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

    def take(self, client: str, *, count: bool = True) -> float:
        """Seconds that *client* must wait; 0: it may ask, and the request is counted.

        Without *count* nothing is counted.
        """
        key = hashlib.blake2b(
            client.encode("utf-8", errors="surrogateescape"), digest_size=8
        ).digest()
        if self._file >= 0:
            # Held for microseconds. If a worker dies meanwhile, the kernel releases it.
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            offset, full_at = self._find(key)
            after = max(full_at, now) + self._interval_s
            wait_s = after - now - self._slack_s
            # The sums above are rounded, by less than a billionth of a second.
            if wait_s > 1e-9:
                return wait_s
            if count:
                _SLOT.pack_into(self._table, offset, key, after)
            return 0.0
        finally:
            if self._file >= 0:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _find(self, key: bytes) -> tuple[int, float]:
        """The slot of *key*, and when its bucket is full: 0 if the client is new."""
        first = int.from_bytes(key, "little")
        slots = []
        for step in range(SLOTS_SEARCHED):
            offset = (first + step) % SLOTS * _SLOT.size
            found, full_at = _SLOT.unpack_from(self._table, offset)
            if found == key:
                return offset, full_at
            # An empty slot has the time 0: it comes before any client that is forgotten.
            slots.append((full_at, step, offset))
        return min(slots)[2], 0.0
