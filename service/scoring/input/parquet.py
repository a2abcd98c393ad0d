"""Rows of a Parquet file. A value or a row group that cannot be read costs its own rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from models.errors import DataError
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import require

ROWS = 128
"""Rows in memory at a time: few, because a column may hold whole images."""


class ParquetTable:
    """The Parquet file in *stream*, which the messages call *place*.

    Raises `DataError` if it is none.
    """

    def __init__(self, place: str, stream: Any) -> None:  # Any: pyarrow ships no types
        self._place = place
        self._arrow = require("pyarrow", purpose=f"reading {place}")
        parquet = require("pyarrow.parquet", purpose=f"reading {place}")
        try:
            self._file = parquet.ParquetFile(stream)
            self.names: list[str] = list(self._file.schema_arrow.names)
        except (self._arrow.ArrowException, OSError) as error:
            _raise_disk_error(error)
            raise DataError(
                f"{place} is not a Parquet file: {error}. Copy the complete file"
            ) from error

    def rows(self, wanted: list[int]) -> Iterator[tuple[Any, ...] | Item]:
        """The values of the *wanted* columns, by position in `names`, row by row.

        A row that cannot be read is an item with a fault.
        """
        first = 0
        for group in range(self._file.num_row_groups):
            done, end = first, first + self._file.metadata.row_group(group).num_rows
            try:
                for columns in self._columns(group, wanted):
                    yield from zip(*columns, strict=True)
                    done += len(columns[0])
            except (self._arrow.ArrowException, OSError) as error:
                _raise_disk_error(error)
                where = f"of {self._place}, in row group {group}, cannot be read: {error}"
                for row in range(done, end):
                    yield Item("", fault=Fault("bad_row", f"row {row} {where}"))
            first = end

    def _columns(self, group: int, wanted: list[int]) -> Iterator[list[list[Any]]]:
        # pyarrow selects columns by name. Where names repeat, all are read and counted.
        by_name = len(set(self.names)) == len(self.names)
        keys = [self.names[at] for at in wanted] if by_name else wanted
        for batch in self._file.iter_batches(
            batch_size=ROWS, row_groups=[group], columns=keys if by_name else None
        ):
            yield [self._values(batch.column(key)) for key in keys]

    def _values(self, column: Any) -> list[Any]:
        pa = self._arrow
        column = getattr(column, "storage", column)  # of an extension type
        kind = column.type
        try:
            if pa.types.is_timestamp(kind):
                # As UTC: the zone's own rules need a database that may lack it.
                texts = column.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
                return [
                    text and text.replace(" ", "T", text[0] != "<") + ("Z" if kind.tz else "")
                    for text in texts
                ]
            if pa.types.is_duration(kind):
                column = column.cast(pa.int64())
            elif pa.types.is_date(kind) or pa.types.is_time(kind):
                column = column.cast(pa.string())
            return list(column.to_pylist())
        except (pa.ArrowException, ValueError, OverflowError):
            return [self._value(one) for one in column]

    def _value(self, one: Any) -> Any:
        """The value of a single Arrow scalar; text where Python has none."""
        pa = self._arrow
        try:
            return one.as_py()
        except (pa.ArrowException, ValueError, OverflowError):
            if isinstance(one, pa.StringScalar | pa.LargeStringScalar):
                return one.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
            if isinstance(one, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
                return [self._value(inner) for inner in one.values]
            if isinstance(one, pa.StructScalar):
                return [[field.name, self._value(one[at])] for at, field in enumerate(one.type)]
            try:
                return one.cast(pa.string()).as_py()
            except pa.ArrowException:
                return f"<{one.type}>"


def _raise_disk_error(error: Exception) -> None:
    """Raise *error* if the disk is at fault: pyarrow raises `OSError` for bad content as well."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
