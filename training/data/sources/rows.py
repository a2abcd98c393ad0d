"""The rows of one table, with commas, semicolons or tabs, in UTF-8 or UTF-16."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from models.errors import DataError
from models.table_columns import PATH_NAMES, separator_of
from training.data.layout.names import LABEL_NAMES, few_of, number, printable
from training.data.layout.splits import same_name
from training.data.sources.dataset import SourceOptions

if TYPE_CHECKING:
    import _csv

CELL_MAX = 1 << 30
"""Most characters of a cell; Python's own limit is 131,072."""
EXPECTED = (
    f"expected a CSV file with a column for paths ({', '.join(PATH_NAMES)}), one for labels"
    f" ({', '.join(LABEL_NAMES)}) and, if the data is split, split; --path-column and"
    " --label-column take other names"
)
MARKS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}
"""Cells of one-hot columns."""


class Row(NamedTuple):
    """One row of a table."""

    table: Path
    line: int
    path: str
    label: str
    """Empty if it has no label, or several."""
    split: str
    stripped: bool = False
    """White space around its label was taken away."""
    marked: tuple[str, ...] = ()
    """The classes of a one-hot row that has several."""
    above: str = ""
    """Comes before its path in names, if there are several tables."""


class _Columns(NamedTuple):
    names: list[str]
    path: int
    label: int | None
    """None if there is one column for each class."""
    split: int | None

    @property
    def others(self) -> list[int]:
        """The columns that may be one-hot."""
        return [at for at, name in enumerate(self.names) if name and at not in self[1:]]


def read_rows(table: Path, options: SourceOptions) -> tuple[list[Row], list[str]]:
    """The rows of *table*, and the problem of those that have too few cells or too many.

    Raises `DataError` if it cannot be read as a table.
    """
    csv.field_size_limit(CELL_MAX)
    try:
        with table.open(encoding=_encoding(table), newline="") as stream:
            return _rows(table, stream, options)
    except OSError as error:
        raise DataError(f"{table}: {error.strerror}; {EXPECTED}") from error
    except (csv.Error, UnicodeError, ValueError) as error:
        raise DataError(
            f"{table} is not a CSV file in UTF-8, or in UTF-16 with a byte-order mark: {error}"
        ) from error


def _encoding(table: Path) -> str:
    with table.open("rb") as stream:
        return "utf-16" if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _rows(table: Path, stream: TextIO, options: SourceOptions) -> tuple[list[Row], list[str]]:
    delimiter = separator_of(stream.readline(), PATH_NAMES)
    stream.seek(0)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    columns = _columns(table, next(_each(table, reader), []), options)
    rows: list[Row] = []
    ragged: list[str] = []
    for cells in _each(table, reader):
        if len(cells) == len(columns.names) and any(cells):
            rows.append(_row(table, reader.line_num, cells, columns))
        elif any(cells):
            ragged.append(f"{reader.line_num} ({len(cells)})")
    problem = (
        f"{table} has {len(columns.names)} columns, but not in {number(ragged, 'row')}:"
        f" {few_of(ragged)}"
    )
    return rows, [problem] if ragged else []


def _each(table: Path, reader: _csv.Reader) -> Iterator[list[str]]:
    """The rows of *reader*.

    Raises `DataError` with the line where a row begins that cannot be read.
    """
    begins = 1
    try:
        begins = reader.line_num + 1
        for cells in reader:
            yield cells
            begins = reader.line_num + 1
    except csv.Error as error:
        cause = (
            "has a quote that is never closed"
            if "unexpected end of data" in str(error)
            else f"cannot be read ({error})"
        )
        raise DataError(
            f"{table}: the row that begins in line {begins} {cause}; close it, or write a quote"
            " that is text as two"
        ) from error


def _row(table: Path, line: int, cells: list[str], columns: _Columns) -> Row:
    split = cells[columns.split].strip() if columns.split is not None else ""
    row = Row(table, line, cells[columns.path].strip(), "", split)
    if columns.label is not None:
        cell = cells[columns.label]
        return row._replace(label=printable(cell.strip()), stripped=cell != cell.strip())
    marks = {columns.names[at]: cells[at].strip().casefold() for at in columns.others}
    if wrong := [
        f"{name} is {printable(mark[:20])}" for name, mark in marks.items() if mark not in MARKS
    ]:
        raise DataError(
            f"{table} has no column for labels, and is not a table of 0 and 1 for each class: in"
            f" row {line}, {few_of(wrong)}; {EXPECTED}"
        )
    marked = tuple(printable(name) for name, mark in marks.items() if MARKS[mark])
    return row._replace(label=marked[0]) if len(marked) == 1 else row._replace(marked=marked)


def _columns(table: Path, header: list[str], options: SourceOptions) -> _Columns:
    names = [name.strip() for name in header]
    counted = Counter(name.casefold() for name in names if name)
    if twice := [name for name, count in counted.items() if count > 1]:
        raise DataError(
            f"{table} has more than one column {few_of(twice)}: rename or remove all but one"
        )
    path = _column(table, names, "path", PATH_NAMES, options.path_column)
    label = _column(table, names, "label", LABEL_NAMES, options.label_column)
    split = next((at for at, name in enumerate(names) if name.casefold() == "split"), None)
    columns = _Columns(names, -1 if path is None else path, label, split)
    if path is None or (label is None and len(columns.others) < 2):
        absent = [what for what, at in (("paths", path), ("labels", label)) if at is None]
        found = ", ".join(map(printable, names)) or "none"
        raise DataError(
            f"{table} has no column for {' and none for '.join(absent)}; found {found}; {EXPECTED}"
        )
    return columns


def _column(
    table: Path, names: list[str], what: str, known: tuple[str, ...], wanted: str | None
) -> int | None:
    """The column for *what*: the *wanted* one, else the first of *known*, else the only one."""
    if wanted is not None:
        name = same_name(wanted, names)
        if name is None:
            raise DataError(
                f"{table} has no column {wanted} (--{what}-column); found"
                f" {', '.join(map(printable, names)) or 'none'}"
            )
        return names.index(name)
    places = [at for at, name in enumerate(names) if name.casefold() in known]
    first = [at for at in places if names[at].casefold() == known[0]]
    if len(places) > 1 and not first:
        raise DataError(
            f"{table} has {len(places)} columns for {what}s:"
            f" {', '.join(names[at] for at in places)}; say which with --{what}-column"
        )
    return next(iter(first or places), None)
