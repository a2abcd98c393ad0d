"""Which clients a canary answers, and which requests a shadow sees.

By a hash and not by chance: a client gets the same version from every worker and after every
restart, and raising the share from 10 % to 20 % keeps the first 10 % where they are.
"""

from __future__ import annotations

import hashlib

_RANGE = 2**64


def in_share(share: float, *, model: str, client: str) -> bool:
    """Whether *client* belongs to the *share*, 0 to 1, of the clients of *model*.

    A client without a key never does.
    """
    if share <= 0.0 or not client:
        return False
    # The model's name is hashed too: the same clients should not be the first for every model.
    digest = hashlib.blake2b(f"{model}\0{client}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * _RANGE


class EveryNth:
    """True for a *share*, 0 to 1, of the calls, evenly spread."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._due = 0.0

    def __call__(self) -> bool:
        """Whether this call is one of them."""
        self._due += self._share
        # 0.1 ten times is a little less than 1.
        if self._due < 1.0 - 1e-9:
            return False
        self._due -= 1.0
        return True
