"""`csv:PATH`: a table with the columns `path`, `label` and, if it is split, `split`. Paths are relative to the table's folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.sources.dataset import Example
from training.sources.listing import SPLIT_OF, WHOLE, Listing, class_order, few_of, in_split_order

REQUIRED = ("path", "label")


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    line: int
    path: str
    label: str
    split: str


def list_table(rest: str) -> Listing:
    """What the table *rest* holds. Raises `DataError` if it cannot be read as one."""
    table = Path(rest)
    rows = _read(table)
    kept = [row for row in rows if row.path and row.label]
    labels = class_order({row.label for row in kept})
    index_of = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Example]] = {}
    is_split = any(row.split for row in rows)
    for row in kept:
        split = SPLIT_OF.get(row.split) if is_split else WHOLE
        path = table.parent / row.path
        if split is not None and path.is_file():
            splits.setdefault(split, []).append(Example(name=row.path, label=index_of[row.label], path=path))
    return Listing(
        source=f"csv:{table}",
        place=str(table),
        labels=labels,
        splits=in_split_order(splits) or {WHOLE: ()},
        problems=tuple(_problems(table, rows, labels, is_split=is_split)),
    )


def _read(table: Path) -> list[_Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            missing = [column for column in REQUIRED if column not in columns]
            if missing:
                raise DataError(
                    f"{table} has no column {' and no column '.join(missing)}; found {', '.join(columns) or 'none'}; "
                    "expected path, label and, if the data is split, split"
                )
            reader.fieldnames = columns
            return [_Row(reader.line_num, *(str(row.get(column) or "").strip() for column in (*REQUIRED, "split"))) for row in reader]
    except OSError as error:
        raise DataError(f"{table}: {error.strerror}; expected a CSV file with the columns path, label and, if the data is split, split") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is not a CSV file in UTF-8: {error}") from error


def _problems(table: Path, rows: list[_Row], labels: tuple[str, ...], *, is_split: bool) -> list[str]:
    """What is wrong with *rows*; rows are named by their line in the file."""
    problems = []
    if not rows:
        problems.append(f"{table} has no rows below its header")
    blank = {column: [row.line for row in rows if not getattr(row, column)] for column in REQUIRED}
    problems += [f"{table} has no {column} in {len(lines)} rows: {few_of(lines)}" for column, lines in blank.items() if lines]
    if unknown := [f"{row.line} ({row.split or 'empty'})" for row in rows if is_split and row.split not in SPLIT_OF]:
        problems.append(f"{table} has unknown splits in {len(unknown)} rows: {few_of(unknown)}; valid: {', '.join(SPLIT_OF)}")
    if absent := [f"{row.line} ({row.path})" for row in rows if row.path and not (table.parent / row.path).is_file()]:
        problems.append(f"{table} names files that do not exist in {len(absent)} rows: {few_of(absent)}; paths are relative to {table.parent}")
    if rows and len(labels) < 2:
        problems.append(f"{table} has {len(labels)} classes ({', '.join(labels) or 'none'}); a classifier needs 2 or more")
    return problems
