"""Which clients a canary answers.

By a hash and not by chance: a client gets the same version from every worker and after every
restart, and raising the share from 10 % to 20 % keeps the first 10 % where they are.
"""

from __future__ import annotations

import hashlib


def in_share(share: float, *, model: str, client: str) -> bool:
    """Whether *client* belongs to the *share*, 0 to 1, of the clients of *model*.

    A client without a key never does.
    """
    if share <= 0.0 or not client:
        return False
    # The model's name is hashed too: the same clients should not be the first for every model.
    digest = hashlib.blake2b(f"{model}\0{client}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
