"""Tables with a path column: CSV, JSONL, Parquet. Rows are streamed; the other columns come along."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from models.errors import ConfigError, DataError
from models.table_columns import PATH_NAMES, SEPARATORS, path_names, separator_of
from service.scoring.input.items import UNIT_ITEMS, Fault, Item
from service.scoring.input.parquet import ParquetTable
from service.scoring.input.places import folder_of, is_http, joined, open_place, storage_kept
from service.scoring.input.values import distinct, json_text, plain_text, scalar

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
ROW_CHARACTERS = 8 * 2**20
"""Text that a row may carry: 64 of them, escaped, fit into one record of the journal."""
PATH_CHARACTERS = 8192
MOST_COLUMNS = 1000
"""Columns that may come along. More is a table with keys for names, and would need the memory of a million columns."""
SHOWN = 200
"""Characters of a row that a dead letter shows."""

Row = tuple[str, Any, list[tuple[str, Any]]]  # Any: whatever a parser returns
"""The name of the path's column, the path, and (name, value) of the columns that come along."""


def table_items(
    place: str, *, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Item]:
    """A row each of the table at *place*. Paths are relative to the table's folder.

    *path_column* None stands for the one of `PATH_NAMES` that is there. *carry* names the other
    columns that come along; None: all. Raises `DataError` if the table cannot be read as one,
    `ConfigError` for a column that it does not have.
    """
    folder = folder_of(place)
    names: set[str] = set()
    name = place.partition("?")[0] if is_http(place) else place
    read = {"csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}.get(
        name.rpartition(".")[2].lower(), _jsonl_rows
    )
    for row in read(place, path_column, carry):
        yield row if isinstance(row, Item) else _item(row, folder, names)


def _item(row: Row, folder: str, names: set[str]) -> Item:
    """*row* as an item. *names* are the columns of the rows before it, and of it."""
    path_column, path, pairs = row
    shown = "" if path is None else _shown(path)
    try:
        extra = tuple((plain_text(name), scalar(value)) for name, value in pairs)
    except RecursionError:
        return Item(shown, fault=Fault("bad_row", "a value is nested too deep"))
    characters = sum([len(value) for _, value in extra if isinstance(value, str)])
    if characters > ROW_CHARACTERS:
        return Item(
            shown,
            fault=Fault(
                "bad_row",
                f"the row carries {characters} characters, expected at most {ROW_CHARACTERS}; see"
                " --carry",
            ),
        )
    if new := {name for name, _ in extra} - names:
        if len(names) + len(new) > MOST_COLUMNS:
            which = ", ".join(sorted(new))[:SHOWN]
            return Item(
                shown,
                fault=Fault(
                    "bad_row",
                    f"its {which} would be more than {MOST_COLUMNS} columns in all; see --carry",
                ),
            )
        names |= new
    if not isinstance(path, str) or not path:
        return Item(
            shown,
            extra=extra,
            fault=Fault(
                "no_path", f"column {path_column!r} has no path: {_shown(path) or 'an empty text'}"
            ),
        )
    if len(path) > PATH_CHARACTERS:
        return Item(
            shown,
            extra=extra,
            fault=Fault(
                "no_path", f"a path of {len(path)} characters, expected at most {PATH_CHARACTERS}"
            ),
        )
    return Item(path, url=joined(folder, path), extra=extra)


def _shown(value: Any) -> str:
    """*value* for a dead letter: a text as it is, all else as JSON."""
    try:
        return plain_text((value if isinstance(value, str) else json_text(value))[:SHOWN])
    except RecursionError:
        return "a value that is nested too deep"


def _csv_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    # The limit is the process's: the default of 128 KiB is less than what people put into a cell.
    csv.field_size_limit(ROW_CHARACTERS)
    with _text(place, newline="") as stream:
        lines = _Lines(stream)
        separator = separator_of(lines.peek(), PATH_NAMES if path_column is None else [path_column])
        reader = csv.reader(lines, strict=True, delimiter=separator)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise DataError(
                f"{place} is not CSV: its header, line 1, cannot be read: {error}"
            ) from error
        lines.keep()
        at, carried = _choose(place, header, path_column, carry, separated=SEPARATORS[separator])
        while True:
            number = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # Often a quote that is never closed: the lines that it took along are read again
                # without it.
                yield _bad_row(lines.give_back(), f"line {number} is no row of CSV: {error}")
                continue
            lines.keep()
            if cells and len(cells) != len(header):
                yield _bad_row(
                    separator.join(cells),
                    f"line {number} has {len(cells)} cells, expected {len(header)}",
                )
            elif cells:
                yield header[at], cells[at], [(name, cells[column]) for column, name in carried]


def _jsonl_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    with _text(place, newline="\n") as stream:
        found = _json_objects(_Lines(stream))
        begin = list(itertools.islice(found, UNIT_ITEMS))
        keys = list(dict.fromkeys(key for row in begin if isinstance(row, dict) for key in row))
        wanted = path_column or PATH_NAMES[0]
        if keys:
            wanted = _path_column(place, keys, path_column)
            _require_columns(place, keys, carry)
        for row in itertools.chain(begin, found):
            if isinstance(row, Item):
                yield row
                continue
            yield (
                wanted,
                row.get(wanted),
                [
                    (name, value)
                    for name, value in row.items()
                    if name != wanted and (carry is None or name in carry)
                ],
            )


def _json_objects(lines: _Lines) -> Iterator[dict[str, Any] | Item]:
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield _bad_row(lines.give_back(), f"line {lines.number} is no JSON object: {error}")
            continue
        lines.keep()
        if not line.strip():
            continue
        try:
            row = _JSON.decode(line)
            if not isinstance(row, dict):
                yield _bad_row(line, f"line {lines.number} is no JSON object: {_shown(row)}")
                continue
        except (ValueError, RecursionError) as error:
            yield _bad_row(line, f"line {lines.number} is no JSON object: {error}")
            continue
        yield row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key {_shown([next(name for name in names if names.count(name) > 1)])[1:-1]} stands"
            " there twice"
        )
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _parquet_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    with storage_kept(place), open_place(place) as stream:
        table = ParquetTable(place, stream)
        at, carried = _choose(place, table.names, path_column, carry)
        for values in table.rows([at, *(column for column, _ in carried)]):
            if isinstance(values, Item):
                yield values
                continue
            path, *rest = values
            # Some writers store text as bytes without saying that it is text.
            yield (
                table.names[at],
                path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path,
                [(name, value) for (_, name), value in zip(carried, rest, strict=True)],
            )


def _choose(
    place: str,
    header: list[str],
    path_column: str | None,
    carry: tuple[str, ...] | None,
    *,
    separated: str = "",
) -> tuple[int, list[tuple[int, str]]]:
    """Where the path stands in *header*, and (place, name) of the columns that come along, no two
    of one name.
    """
    path_column = _path_column(place, header, path_column, separated=separated)
    at = header.index(path_column)
    if header.count(path_column) > 1:
        raise ConfigError(
            f"{place} has {header.count(path_column)} columns {path_column!r}, expected one; rename"
            " the others"
        )
    others = [column for column in range(len(header)) if column != at]
    named = list(zip(others, distinct(header[column] for column in others), strict=True))
    _require_columns(place, [path_column, *(name for _, name in named)], carry)
    carried = [(column, name) for column, name in named if carry is None or name in carry]
    if len(carried) > MOST_COLUMNS:
        raise ConfigError(
            f"{place} has {len(carried)} columns to come along, expected at most {MOST_COLUMNS};"
            " choose some with --carry"
        )
    return at, carried


def _path_column(
    place: str, found: list[str], path_column: str | None, *, separated: str = ""
) -> str:
    """The column of *found* that holds the paths.

    Raises `ConfigError` if there is none, or more than one that might.
    """
    names = (
        path_names(found)
        if path_column is None
        else [name for name in found if name == path_column]
    )
    if not names:
        wanted = (
            f"for paths ({', '.join(PATH_NAMES)})" if path_column is None else repr(path_column)
        )
        raise ConfigError(
            f"{place} has no column {wanted}; it has {_listed(found, separated)}. --path-column"
            " says which holds the paths"
        )
    if len(set(names)) > 1:
        raise ConfigError(
            f"{place} has several columns that may hold the paths: {', '.join(names)}."
            " --path-column says which does"
        )
    return names[0]


def _require_columns(place: str, found: list[str], carry: tuple[str, ...] | None) -> None:
    missing = [name for name in carry or () if name not in found]
    if missing:
        raise ConfigError(
            f"{place} has no column {missing[0]!r}; it has {_listed(found)}. --carry says which"
            " come along"
        )


def _listed(found: list[str], separated: str = "") -> str:
    names = plain_text(", ".join(found))
    has = names if len(names) <= 5 * SHOWN else f"{names[: 5 * SHOWN]}..."
    return f"{has or 'none'} (separated by {separated})" if has and separated else has or "none"


def _bad_row(text: str, reason: str) -> Item:
    return Item(plain_text(text.strip()[:SHOWN]), fault=Fault("bad_row", reason))


@contextmanager
def _text(place: str, *, newline: str) -> Iterator[IO[str]]:
    """The text at *place*: UTF-8, or UTF-16 with its mark.

    Bytes that are none stay in the text as `os.fsdecode` has them.
    """
    with storage_kept(place), open_place(place) as raw:
        wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raw.seek(0)
        encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
        with io.TextIOWrapper(raw, encoding, errors, newline) as stream:
            yield stream


class _Lines(Iterator[str]):
    """Lines of *stream*; those since the last `keep` can be given back.

    Raises `csv.Error` for a line of more than `ROW_CHARACTERS`.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._again: deque[str] = deque()
        self._since: list[str] = []
        self.number = 0
        """Of the last line, from 1."""

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self._since.append(line)
        self.number += 1
        if len(line) > ROW_CHARACTERS:
            raise csv.Error(f"it has more than {ROW_CHARACTERS} characters")
        return line

    def peek(self) -> str:
        """The next line, or its beginning, which is given all the same; empty at the end."""
        line = self._read()
        self._again.append(line)
        return line

    def keep(self) -> None:
        """What was given so far is used."""
        self._since.clear()

    def give_back(self) -> str:
        """The first line since `keep`; those behind it come again."""
        first, *rest = self._since
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        self._since.clear()
        return first

    def _read(self) -> str:
        line = self._stream.readline(ROW_CHARACTERS + 1)
        rest = line
        while len(rest) > ROW_CHARACTERS and not rest.endswith(("\n", "\r")):
            rest = self._stream.readline(ROW_CHARACTERS + 1)
        return line
