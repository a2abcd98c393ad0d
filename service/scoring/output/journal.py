"""The journal of a job: the records of its finished units, in order, in an append-only file.

Each record has its length and a checksum. After a crash, the journal is cut off behind the last
whole record, and the job resumes there. It is both the list of finished units and their answers, so
no second file can contradict it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import astuple
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ScoringError
from service.scoring.compute.unit import Record
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import raising_storage_lost
from service.scoring.output.tally import Tally

MAGIC = b"loupe journal 2\n"
"""The number changes when the same input would give other records: such jobs cannot be resumed."""
_FRAME = struct.Struct("<III")
"""Bytes of the header, bytes of the arrays, CRC-32 of both."""
SYNC_EVERY_S = 5.0
"""A power cut loses up to this much work. A killed process loses nothing that was written."""


class Journal:
    """The journal in file *path*, open for appending. One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.units = 0
        self.digest = ""
        """`Unit.digest` of the last record."""
        self.tally = Tally()
        with raising_storage_lost(str(path)):
            self._stream = self._recover()
        self._synced_s = time.monotonic()

    def append(self, record: Record) -> None:
        """Add *record*. Raises `StorageLost`; earlier records are then still valid."""
        framed = encode(record)
        with raising_storage_lost(str(self.path)):
            if self._stream.write(framed) < len(framed):
                # A disk that fills takes a part, and only the next write fails.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced_s > SYNC_EVERY_S:
                os.fsync(self._stream.fileno())
                self._synced_s = time.monotonic()
        self._count(record)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _recover(self) -> FileIO:
        """The file, cut off after its last whole record; its records are counted."""
        self.path.touch()
        end = 0
        for record, end in _read(self.path):  # noqa: B007 - the last `end` is what counts
            self._count(record)
        stream = self.path.open("r+b", buffering=0)
        stream.truncate(end)
        stream.seek(end)
        if end == 0:
            stream.write(MAGIC)
        return stream

    def _count(self, record: Record) -> None:
        self.units += 1
        self.digest = record.digest
        self.tally.add(record.tally)


def read_records(path: Path) -> Iterator[Record]:
    """The whole records in journal *path*, in order."""
    with raising_storage_lost(str(path)):
        for record, _ in _read(path):
            yield record


def _read(path: Path) -> Iterator[tuple[Record, int]]:
    """(record, position of its end) of each whole record."""
    with path.open("rb") as stream:
        magic = stream.read(len(MAGIC))
        if magic != MAGIC and len(magic) == len(MAGIC):
            what = (
                f"{magic.decode().strip()}, of another release"
                if magic.startswith(MAGIC[:14]) and magic.isascii()
                else "no journal"
            )
            raise ScoringError(
                f"{path} is {what}; expected {MAGIC.decode().strip()}. Finish the job with the"
                " release that started it, or start again with --overwrite"
            )
        while len(frame := stream.read(_FRAME.size)) == _FRAME.size:
            header_bytes, array_bytes, checksum = _FRAME.unpack(frame)
            body = stream.read(header_bytes + array_bytes)
            if len(body) != header_bytes + array_bytes or zlib.crc32(body) != checksum:
                return
            yield decode(frame + body), stream.tell()


def encode(record: Record) -> bytes:
    """*record* as it is in the file."""
    header: dict[str, Any] = {
        "unit": record.unit,
        "first_row": record.first_row,
        "digest": record.digest,
        "rows": [[row, item.path, item.extra] for row, item in record.rows],
        "failed": [
            [row, item.path, item.extra, astuple(fault)] for row, item, fault in record.failed
        ],
        "sha256": record.sha256,
        "tally": vars(record.tally),
        "arrays": {name: [array.dtype.str, array.shape] for name, array in record.arrays.items()},
    }
    # ASCII, because paths need not be UTF-8: the surrogates of os.fsdecode are escaped.
    text = json.dumps(header, separators=(",", ":")).encode()
    body = text + b"".join(
        np.ascontiguousarray(array).tobytes() for array in record.arrays.values()
    )
    return _FRAME.pack(len(text), len(body) - len(text), zlib.crc32(body)) + body


def decode(framed: bytes) -> Record:
    """The record that `encode` made *framed* of."""
    at = _FRAME.size + _FRAME.unpack_from(framed)[0]
    header = json.loads(framed[_FRAME.size : at])
    arrays = {}
    for name, (dtype, shape) in header["arrays"].items():
        arrays[name] = np.frombuffer(framed, dtype, math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    tally = Tally(**header["tally"])
    tally.classes = {int(index): count for index, count in tally.classes.items()}
    rows = [
        (row, Item(path, extra=tuple(map(tuple, extra)))) for row, path, extra in header["rows"]
    ]
    failed = [
        (row, Item(path, extra=tuple(map(tuple, extra))), Fault(*fault))
        for row, path, extra, fault in header["failed"]
    ]
    place = (header["unit"], header["first_row"], header["digest"])
    return Record(*place, rows, failed, arrays, header["sha256"], tally)
