"""Rows of a Parquet file, whatever its types: a value or a row group that cannot be read costs its
own rows alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from models.errors import DataError
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import require

ROWS, ROWS_WITH_BYTES = 1024, 64
"""Rows in memory at a time; fewer where a column holds bytes, which may be whole images."""


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
            self._schema = self._file.schema_arrow
        except (self._arrow.ArrowException, OSError) as error:
            _require_content(error)
            raise DataError(
                f"{place} is not a Parquet file: {error}. Copy the complete file"
            ) from error
        self.names: list[str] = list(self._schema.names)

    def rows(self, wanted: list[int]) -> Iterator[tuple[Any, ...] | Item]:
        """The values of the *wanted* columns, by place in `names`, row by row; an item with a fault
        for each row that cannot be read.
        """
        first = 0
        for group in range(self._file.num_row_groups):
            count, done = self._file.metadata.row_group(group).num_rows, 0
            try:
                for columns in self._columns(group, wanted):
                    for row in zip(*columns, strict=True):
                        yield row
                        done += 1
            except (self._arrow.ArrowException, OSError) as error:
                _require_content(error)
                for row_number in range(first + done, first + count):
                    yield Item(
                        "",
                        fault=Fault(
                            "bad_row",
                            f"row {row_number} of {self._place}, in row group {group}, cannot be"
                            f" read: {error}",
                        ),
                    )
            first += count

    def _columns(self, group: int, wanted: list[int]) -> Iterator[list[list[Any]]]:
        size = (
            ROWS_WITH_BYTES
            if any(_holds_bytes(self._schema.field(at).type, self._arrow) for at in wanted)
            else ROWS
        )
        names = list(dict.fromkeys(self.names[at] for at in wanted))
        # Columns of one name are told apart by their order; a name also selects what is called
        # `name.something`.
        nth = Counter[str]()
        places = {}
        for at, name in enumerate(self.names):
            places[name, nth[name]] = at
            nth[name] += 1
        for batch in self._file.iter_batches(batch_size=size, row_groups=[group], columns=names):
            nth.clear()
            found = {}
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                found[places[name, nth[name]]] = column
                nth[name] += 1
            yield [self._values(found[at]) for at in wanted]

    def _values(self, column: Any) -> list[Any]:
        pa = self._arrow
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
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
                return list(column.cast(pa.int64()).to_pylist())
            if pa.types.is_date(kind) or pa.types.is_time(kind):
                return list(column.cast(pa.string()).to_pylist())
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


def _require_content(error: Exception) -> None:
    """Raise *error* if it is of the disk and not of the content: pyarrow raises `OSError` for both."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _holds_bytes(kind: Any, pa: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(at).type, pa) for at in range(kind.num_fields))
