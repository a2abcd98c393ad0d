"""Tables with a path column: CSV, JSONL, Parquet. Rows are streamed; the other columns come along."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from models.errors import ConfigError, DataError
from service.scoring.items import Fault, Item, Scalar
from service.scoring.places import joined, open_place, require, storage_kept

TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
PARQUET_ROWS = 1024
"""Rows in memory at a time."""


def table_items(place: str, *, path_column: str, carry: tuple[str, ...] | None) -> Iterator[Item]:
    """A row each of the table at *place*. Paths are relative to the table's folder.

    *carry* names the other columns that come along; None: all. Raises `DataError` if the table cannot be read as one, `ConfigError` for a
    column that it does not have.
    """
    folder = place.rpartition("/")[0] or "."
    read = {"csv": _csv_rows, "parquet": _parquet_rows}.get(place.rpartition(".")[2].lower(), _jsonl_rows)
    for row in read(place, path_column, carry):
        if isinstance(row, Item):
            yield row
            continue
        extra = tuple((name, _scalar(value)) for name, value in row.items() if name != path_column and (carry is None or name in carry))
        path = row.get(path_column)
        if not isinstance(path, str) or not path:
            yield Item("" if path is None else str(path), extra=extra, fault=Fault("no_path", f"column {path_column!r} has no path: {path!r}"))
        else:
            yield Item(path, url=joined(folder, path), extra=extra)


def _csv_rows(place: str, path_column: str, carry: tuple[str, ...] | None) -> Iterator[Mapping[str, Any] | Item]:
    with storage_kept(place), open_place(place) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.reader(stream, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            _require_columns(place, columns, path_column, carry)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    text = ",".join(cells)
                    yield Item(text, fault=Fault("bad_row", f"line {reader.line_num} has {len(cells)} cells, expected {len(columns)}"))
                else:
                    yield dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{place}, line {reader.line_num}, is not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is not CSV in UTF-8, after line {reader.line_num}: {error}") from error


def _jsonl_rows(place: str, path_column: str, carry: tuple[str, ...] | None) -> Iterator[Mapping[str, Any] | Item]:
    with storage_kept(place), open_place(place) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                row = error
            if not isinstance(row, dict):
                yield Item(line.decode(errors="replace").strip()[:200], fault=Fault("bad_row", f"line {number} is no JSON object: {row}"))
                continue
            if number == 1:
                _require_columns(place, list(row), path_column, carry)
            yield row


def _parquet_rows(place: str, path_column: str, carry: tuple[str, ...] | None) -> Iterator[Mapping[str, Any]]:
    arrow, parquet = (require(name, purpose=f"reading {place}") for name in ("pyarrow", "pyarrow.parquet"))
    with storage_kept(place), open_place(place) as stream:
        try:
            table = parquet.ParquetFile(stream)
        except arrow.ArrowInvalid as error:
            raise DataError(f"{place} is not a Parquet file: {error}") from error
        schema = table.schema_arrow
        _require_columns(place, schema.names, path_column, carry)
        wanted = [name for name in schema.names if name == path_column or carry is None or name in carry]
        binary = [name for name in wanted if arrow.types.is_binary(schema.field(name).type) or arrow.types.is_large_binary(schema.field(name).type)]
        if binary:
            raise ConfigError(f"{place}: column {binary[0]!r} holds bytes, which are not carried along; name the columns to carry with --carry")
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
            yield from batch.to_pylist()


def _require_columns(place: str, columns: Iterable[str], path_column: str, carry: tuple[str, ...] | None) -> None:
    found = list(columns)
    missing = [name for name in (path_column, *(carry or ())) if name not in found]
    if missing:
        which = "--path-column says which holds the paths" if missing[0] == path_column else "--carry says which come along"
        raise ConfigError(f"{place} has no column {missing[0]!r}; it has {', '.join(found) or 'none'}. {which}")


def _scalar(value: object) -> Scalar:
    """*value* as it is if JSON has it, otherwise as text: dates in ISO 8601, lists and records as JSON."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
