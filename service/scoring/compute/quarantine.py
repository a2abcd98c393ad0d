"""The quarantine: holds records back while the whole storage may be gone, not just one image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from models.errors import StorageLost
from service.scoring.compute.unit import Record

MOST_HELD = 16
"""Units in a row, 1024 items, without a readable file: then the storage counts as lost."""


def released(records: Iterable[Record], *, any_before: bool) -> Iterator[Record]:
    """*records* in order, each as soon as it is certain that the storage is there.

    An image that was read releases its own record and those that are held. So does a record without
    a suspicious fault. With *any_before*, an earlier part of the job has read something, so that
    the end of the input releases what is held. Raises `StorageLost`. What is held then is not
    recorded, so that a resumed job does it again.
    """
    held: list[Record] = []
    for record in records:
        held.append(record)
        faults = [fault for _, _, fault in record.failed]
        if record.rows or any(fault.was_read for fault in faults):
            any_before = True
        elif suspicion := _suspicion(held):
            if len(held) >= MOST_HELD:
                raise _lost(held, suspicion)
            continue
        yield from held
        held.clear()
    if (suspicion := _suspicion(held)) and not any_before:
        raise _lost(held, suspicion)
    yield from held


def _suspicion(records: Iterable[Record]) -> str:
    return next(
        (
            fault.storage_error
            for record in records
            for _, _, fault in record.failed
            if fault.storage_error
        ),
        "",
    )


def _lost(held: list[Record], suspicion: str) -> StorageLost:
    count = sum(len(record.failed) for record in held)
    return StorageLost(
        f"none of {count} images in a row could be read. {suspicion}. The job's state is kept:"
        " correct that (address, credentials, driver, the bucket itself) and continue with"
        " --resume"
    )
