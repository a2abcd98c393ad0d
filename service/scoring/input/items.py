"""What is to be scored: items, gathered into units.

A unit is the grain of everything: of work, of the journal, of batches (none reaches over its unit's
end). So an image gets its answer in the same batch, and to the last bit the same, however often a
job is killed and whichever engine runs it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
UNIT_ITEMS = 64
"""So many that a batch of 16 is filled nearly always, so few that the first answers come within a second."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one image cannot be scored."""

    code: str
    """One of docs/scoring.md."""
    reason: str
    doubt: str = ""
    """Why the whole storage may be gone, where that could not be ruled out."""
    was_read: bool = False
    """Whether the file could be read, and its content is at fault."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the input."""

    path: str
    """As the input names it; the output's column `path`."""
    url: str = ""
    """Where it is read: a path of this machine or `scheme://...`; an archive, if one of the next is set."""
    member: int | None = None
    """Place in the directory of a zip: two members may have one name."""
    offset: int | None = None
    """First byte in a tar."""
    size: int | None = None
    """Bytes in a tar."""
    extra: tuple[tuple[str, Scalar], ...] = ()
    """The input's other columns."""
    fault: Fault | None = None
    """Set where the listing knows already that there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that are worked on and recorded together."""

    index: int
    first_row: int
    """Row of the first item in the whole input, from 0."""
    items: tuple[Item, ...]
    digest: str
    """Of every item of the input up to the end of this unit: a resumed job must find the same input."""


def units_of(items: Iterable[Item]) -> Iterator[Unit]:
    """*items* in units of `UNIT_ITEMS`, the last one shorter."""
    digest, rows = hashlib.sha256(), iter(items)
    for index in itertools.count():
        taken = list(itertools.islice(rows, UNIT_ITEMS))
        if not taken:
            return
        digest.update(repr(taken).encode("utf-8", "backslashreplace"))
        yield Unit(index, index * UNIT_ITEMS, tuple(taken), digest.hexdigest()[:32])
