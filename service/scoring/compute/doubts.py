"""Records whose faults may be the storage's and not the objects': held back until an object could
be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from models.errors import StorageLost
from service.scoring.compute.unit import Record

MOST_HELD = 16
"""Units in a row, 1024 items, of which none could be read before the storage is taken for lost."""


def settled(records: Iterable[Record], *, any_before: bool) -> Iterator[Record]:
    """*records* in order, each as soon as it is sure that the storage is there.

    A record without a doubt, or with an image that was read, vouches for itself and for those held
    before it. *any_before* says whether an earlier part of the job read anything: then the end of
    the input is no reason to doubt. Raises `StorageLost`; what was held is then not recorded, so
    that a resumed job does it again.
    """
    held: list[Record] = []
    for record in records:
        held.append(record)
        if _was_read(record):
            any_before = True
        elif doubt := _doubt(held):
            if len(held) >= MOST_HELD:
                raise _lost(held, doubt)
            continue
        yield from held
        held.clear()
    if (doubt := _doubt(held)) and not any_before:
        raise _lost(held, doubt)
    yield from held


def _was_read(record: Record) -> bool:
    return bool(record.rows) or any(fault.was_read for _, _, fault in record.failed)


def _doubt(records: Iterable[Record]) -> str:
    return next(
        (fault.doubt for record in records for _, _, fault in record.failed if fault.doubt), ""
    )


def _lost(held: list[Record], doubt: str) -> StorageLost:
    count = sum(len(record.failed) for record in held)
    return StorageLost(
        f"none of {count} images in a row could be read. {doubt}. The job's state is kept: put that"
        " right (address, credentials, driver, the bucket itself) and go on with --resume"
    )
