"""Lines of text and rows of CSV, of any length and with any mistake."""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from service.scoring.input.items import Fault, Item, plain_text
from service.scoring.input.places import open_place, raising_storage_lost

ROW_CHARACTERS = 8 * 2**20
"""Text that a row may carry. 64 such rows, escaped, fit into one record of the journal."""
TOO_LONG = f"it has more than {ROW_CHARACTERS} characters"
SHOWN = 200
"""Characters of a row that the dead-letter file shows."""


def csv_cells(lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str] | Item]]:
    """(line number, cells) of each row; an item with a fault for a row that is no CSV.

    A quote that is never closed swallows the lines after it. These are read again without it.
    """
    # The limit is the process's. Its default of 128 KiB is less than what people put into a cell.
    csv.field_size_limit(ROW_CHARACTERS)
    again: deque[str] = deque()
    taken: list[str] = []
    number = 1

    def next_line() -> str:
        taken.append(again.popleft() if again else next(lines, ""))
        if len(taken[-1]) > ROW_CHARACTERS:
            raise csv.Error(TOO_LONG)
        return taken[-1]

    while True:
        try:
            for cells in csv.reader(iter(next_line, ""), strict=True, delimiter=separator):
                yield number, cells
                number += len(taken)
                taken.clear()
        except csv.Error as error:
            yield number, bad_row(taken[0], f"line {number} is not a row of CSV: {error}")
            again.extendleft(reversed(taken[1:]))
            number += 1
            taken.clear()
        else:
            return


def bad_row(text: str, reason: str) -> Item:
    """The item for a row of *text* that cannot be read."""
    return Item(plain_text(text.strip()[:SHOWN]), fault=Fault("bad_row", reason))


@contextmanager
def open_text(place: str, *, newline: str) -> Iterator[IO[str]]:
    """The text at *place*: UTF-8, or UTF-16 with a byte-order mark.

    Bytes that are not UTF-8 become surrogates, as with `os.fsdecode`.
    """
    with raising_storage_lost(place), open_place(place) as raw:
        wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raw.seek(0)
        encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
        with io.TextIOWrapper(raw, encoding, errors, newline) as stream:
            yield stream


def lines_of(stream: IO[str]) -> Iterator[str]:
    """Lines of *stream*, each cut after `ROW_CHARACTERS` + 1 characters."""
    while line := stream.readline(ROW_CHARACTERS + 1):
        rest = line
        while len(rest) > ROW_CHARACTERS and not rest.endswith(("\n", "\r")):
            rest = stream.readline(ROW_CHARACTERS + 1)
        yield line
