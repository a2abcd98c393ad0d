"""Tables with a path column: CSV, JSONL and Parquet. Rows are streamed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from models.errors import ConfigError, DataError
from models.table_columns import PATH_NAMES, SEPARATORS, path_names, separator_of
from service.scoring.input.items import (
    UNIT_ITEMS,
    Fault,
    Item,
    distinct,
    json_text,
    plain_text,
    scalar,
)
from service.scoring.input.parquet import ParquetTable
from service.scoring.input.places import (
    folder_of,
    is_http,
    joined,
    open_place,
    raising_storage_lost,
)
from service.scoring.input.text_rows import (
    ROW_CHARACTERS,
    SHOWN,
    TOO_LONG,
    bad_row,
    csv_cells,
    lines_of,
    open_text,
)

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PATH_CHARACTERS = 8192
MOST_COLUMNS = 1000
"""Columns that are copied to the output. A table of more uses data as names of columns."""

Row = tuple[str, Any, list[tuple[str, Any]]]  # Any: whatever a parser returns
"""The name of the path column, the path, and (name, value) of the carried columns."""


def table_items(
    place: str, *, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Item]:
    """An item for each row of the table at *place*. Paths are relative to the table's folder.

    *path_column* None means the one of `PATH_NAMES` that the table has. *carry* names the columns
    to copy to the output; None means all. Raises `DataError` if the file is no table,
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
    """*row* as an item. *names* collects the columns of all rows so far."""
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
    new = {name for name, _ in extra} - names
    if len(names) + len(new) > MOST_COLUMNS:
        return Item(
            shown,
            fault=Fault(
                "bad_row",
                f"its {', '.join(sorted(new))[:SHOWN]} would be more than {MOST_COLUMNS} columns in"
                " all; see --carry",
            ),
        )
    names |= new
    if isinstance(path, str) and 0 < len(path) <= PATH_CHARACTERS:
        return Item(path, url=joined(folder, path), extra=extra)
    no_path = f"column {path_column!r} has no path: {_shown(path) or 'an empty text'}"
    too_long = f"a path of {len(str(path))} characters, expected at most {PATH_CHARACTERS}"
    reason = too_long if isinstance(path, str) and path else no_path
    return Item(shown, extra=extra, fault=Fault("no_path", reason))


def _shown(value: Any) -> str:
    """*value* for the dead-letter file: a text as it is, all else as JSON."""
    try:
        return plain_text((value if isinstance(value, str) else json_text(value))[:SHOWN])
    except RecursionError:
        return "a value that is nested too deep"


def _csv_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    with open_text(place, newline="") as stream:
        lines = lines_of(stream)
        first = next(lines, "")
        separator = separator_of(first, PATH_NAMES if path_column is None else [path_column])
        rows = csv_cells(itertools.chain([first], lines), separator)
        _, begin = next(rows, (1, []))
        if isinstance(begin, Item):
            raise DataError(f"{place} is not CSV: {begin.fault and begin.fault.reason}")
        header = [name.strip() for name in begin]
        at, carried = _choose(place, header, path_column, carry, separated=SEPARATORS[separator])
        for number, cells in rows:
            if isinstance(cells, Item):
                yield cells
            elif cells and len(cells) != len(header):
                reason = f"line {number} has {len(cells)} cells, expected {len(header)}"
                yield bad_row(separator.join(cells), reason)
            elif cells:
                yield header[at], cells[at], [(name, cells[column]) for column, name in carried]


def _jsonl_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    with open_text(place, newline="\n") as stream:
        rows = _json_objects(stream)
        begin = list(itertools.islice(rows, UNIT_ITEMS))
        keys = list(dict.fromkeys(key for row in begin if isinstance(row, dict) for key in row))
        wanted = path_column or PATH_NAMES[0]
        if keys:
            wanted = _path_column(place, keys, path_column)
            _require_columns(place, keys, carry)
        carried = None if carry is None else {*carry} - {wanted}
        for row in itertools.chain(begin, rows):
            if isinstance(row, Item):
                yield row
            else:
                path = row.pop(wanted, None)
                pairs = [(n, value) for n, value in row.items() if carried is None or n in carried]
                yield wanted, path, pairs


def _json_objects(stream: IO[str]) -> Iterator[dict[str, Any] | Item]:
    for number, line in enumerate(lines_of(stream), 1):
        try:
            if line.strip():
                yield _json_object(line)
        except (ValueError, TypeError, RecursionError) as error:
            yield bad_row(line, f"line {number} is not a JSON object: {error}")


def _json_object(line: str) -> dict[str, Any]:
    if len(line) > ROW_CHARACTERS:
        raise ValueError(TOO_LONG)
    row = _JSON.decode(line)
    if not isinstance(row, dict):
        raise TypeError(_shown(row))
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {_shown([name])[1:-1]} is there twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _parquet_rows(
    place: str, path_column: str | None, carry: tuple[str, ...] | None
) -> Iterator[Row | Item]:
    with raising_storage_lost(place), open_place(place) as stream:
        table = ParquetTable(place, stream)
        at, carried = _choose(place, table.names, path_column, carry)
        names = [name for _, name in carried]
        for values in table.rows([at, *(column for column, _ in carried)]):
            if isinstance(values, Item):
                yield values
                continue
            path, *rest = values
            # Some writers store text as bytes without saying that it is text.
            text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
            yield table.names[at], text, list(zip(names, rest, strict=True))


def _choose(
    place: str,
    header: list[str],
    path_column: str | None,
    carry: tuple[str, ...] | None,
    *,
    separated: str = "",
) -> tuple[int, list[tuple[int, str]]]:
    """The position of the path in *header*, and (position, unique name) of carried columns."""
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
            f"{place} has {len(carried)} columns to copy, expected at most {MOST_COLUMNS};"
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
            f"{place} has no column {missing[0]!r}; it has {_listed(found)}. --carry names"
            " columns of the table"
        )


def _listed(found: list[str], separated: str = "") -> str:
    names = plain_text(", ".join(found))
    has = names if len(names) <= 5 * SHOWN else f"{names[: 5 * SHOWN]}..."
    return f"{has or 'none'} (separated by {separated})" if has and separated else has or "none"
