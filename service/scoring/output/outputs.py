"""Writes the output: Parquet, CSV or JSONL, or a folder of Parquet files.

It appears when it is complete, in the order of the input.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from models.errors import ConfigError
from service.scoring.compute.unit import Record
from service.scoring.input.items import json_text, plain_text
from service.scoring.input.places import (
    bucket_of,
    exists,
    is_remote,
    local_path,
    raising_storage_lost,
    replaced,
    replaced_folder,
    require,
)
from service.scoring.input.walk import walk
from service.scoring.output.columns import LISTS, OutputColumns, columns_of, rows_of

FORMATS = (".parquet", ".csv", ".jsonl")
ROWS_PER_GROUP = 16_384
"""Rows in memory at a time; a row group of Parquet."""
BYTES_PER_GROUP = 64 * 2**20
ROWS_PER_FILE = 1_048_576
MOST_PARTITIONS = 2**31 - 1
"""pyarrow's own limit is 1024."""
FOLDER_BYTES = 200
"""Bytes of a folder's name, escaped. File systems take 255."""
FOLDER = "folder"
PART = re.compile(r"/part-\d+\.parquet$")


def format_of(out: str, *, partition_by: str | None) -> str:
    """`.parquet`, `.csv`, `.jsonl`, or `folder` for a name without an ending.

    Raises `ConfigError` for any other, and if a library that the format needs is missing.
    """
    name = out.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise ConfigError(
            f"--out {out!r} has no name for a file or folder; expected such as scores.parquet, or"
            " scores for a folder"
        )
    suffix = "" if out.endswith("/") else PurePosixPath(name).suffix.lower()
    if suffix and suffix not in FORMATS:
        raise ConfigError(
            f"--out {out}: {suffix} is none of {', '.join(FORMATS)}; a name without an ending makes"
            " a folder of Parquet files"
        )
    if suffix and partition_by:
        raise ConfigError(
            f"--partition-by makes a folder, and --out {out} is a file: leave out {suffix}"
        )
    if suffix in ("", ".parquet"):
        _arrow("pyarrow.parquet")
    return suffix or FOLDER


_arrow = partial(require, purpose="writing Parquet (.csv and .jsonl do without)")


def write_output(
    records: Iterable[Record], out: str, columns: OutputColumns, *, partition_by: str | None
) -> None:
    """Write *records* to *out*.

    Raises `StorageLost`, after which nothing or the old content is at *out*.
    """
    out_format = format_of(out, partition_by=partition_by)
    if out_format == FOLDER:
        _write_folder(records, out.rstrip("/"), columns, partition_by)
        return
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    with replaced(out) as stream:
        writers[out_format](records, stream, columns)


def json_line(values: dict[str, Any]) -> bytes:
    r"""*values* as a line of JSON.

    Bytes of a path that are not UTF-8 are escaped (`\udce4`), so the line still names the file.
    """
    return json_text(values).encode("utf-8", "backslashreplace") + b"\n"


def _write_jsonl(records: Iterable[Record], stream: IO[bytes], columns: OutputColumns) -> None:
    for values in rows_of(records, columns):
        stream.write(json_line(dict(zip(columns.names, values, strict=True))))


def _write_csv(records: Iterable[Record], stream: IO[bytes], columns: OutputColumns) -> None:
    """Lists are written as JSON."""
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns.names)
    writer.writerows(map(_cell, values) for values in rows_of(records, columns))
    # Not closed: the stream is the caller's to sync.
    text.flush()
    text.detach()


def _cell(value: Any) -> Any:  # Any: what the csv module can write
    return json_text(value) if isinstance(value, list | np.ndarray) else value


def _schema(columns: OutputColumns) -> Any:  # Any: pyarrow ships no types
    pa = _arrow("pyarrow")

    text, lists = pa.string(), pa.list_(pa.float32())
    kinds = {"bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}
    top = pa.struct([("label", text), ("index", pa.int32()), ("probability", pa.float32())])
    types = {
        "row": pa.int64(),
        "probability": pa.float32(),
        "top_k": pa.list_(top),
        "probabilities": lists,
        "embedding": lists,
        "abstained": pa.bool_(),
        "model": pa.dictionary(pa.int32(), text),
    }
    for name, kind in zip(columns.extra_names, columns.kinds.values(), strict=True):
        types[name] = kinds.get(kind, text)
    return pa.schema([(name, types.get(name, text)) for name in columns.names])


def _tables(
    records: Iterable[Record], columns: OutputColumns, partition_by: str | None = None
) -> Iterator[Any]:
    """Tables of about `ROWS_PER_GROUP` rows or `BYTES_PER_GROUP`, the last one shorter."""
    pa, schema = _arrow("pyarrow"), _schema(columns)
    gathered: list[Any] = []
    rows = size = 0
    for record in records:
        values = columns_of(record, columns)
        # Paths need not be UTF-8, text in Parquet must be.
        values["path"] = [plain_text(path) for path in values["path"]]
        if name := partition_by:
            values[name] = [_folder_value(value, name) for value in values[name]]
        gathered.append(pa.table(values, schema=schema))
        rows += len(record.rows)
        size += gathered[-1].nbytes
        if rows >= ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
            yield pa.concat_tables(gathered).combine_chunks()
            gathered, rows, size = [], 0, 0
    yield pa.concat_tables(gathered or [schema.empty_table()]).combine_chunks()


def _write_parquet(records: Iterable[Record], stream: IO[bytes], columns: OutputColumns) -> None:
    with _arrow("pyarrow.parquet").ParquetWriter(
        stream, _schema(columns), compression="zstd"
    ) as writer:
        for table in _tables(records, columns):
            writer.write_table(table)


def check_partition(columns: OutputColumns, partition_by: str | None) -> None:
    """Raise `ConfigError` if no folders can be made of column *partition_by*."""
    if partition_by is None:
        return
    if partition_by not in columns.names:
        raise ConfigError(
            f"--partition-by {partition_by!r} is not a column of the output; it has"
            f" {', '.join(columns.names)}"
        )
    if len(quote(partition_by, safe="")) > FOLDER_BYTES // 2:
        raise ConfigError(
            f"--partition-by {partition_by!r} is too long for the name of a folder; rename the"
            " column"
        )
    if partition_by in {"top_k", *LISTS} & {*columns.chosen}:
        raise ConfigError(
            f"--partition-by {partition_by!r} holds lists, of which no folders can be made; choose"
            " a column of texts or numbers"
        )


def require_folder(out: str, *, overwrite: bool) -> None:
    """Raise `ConfigError` if *out* is a whole bucket, or holds files that would be deleted."""
    plain = out.rstrip("/")
    if is_remote(plain) and plain == bucket_of(plain):
        raise ConfigError(
            f"--out {out} is a whole bucket; name a folder in it, such as {plain}/scores"
        )
    if not (overwrite and exists(plain)):
        return
    # With hidden files: they would be deleted too.
    local = Path(local_path(plain))
    below = (
        (found.path for found in walk(plain))
        if is_remote(plain)
        else (str(path) for path in local.rglob("*") if not path.is_dir())
    )
    foreign = next((path for path in below if not PART.search(path)), None)
    if foreign is not None:
        raise ConfigError(
            f"--out {out} holds {foreign}, which no job wrote, and --overwrite would delete it;"
            " choose another folder"
        )


def _write_folder(
    records: Iterable[Record], out: str, columns: OutputColumns, partition_by: str | None
) -> None:
    """Write `part-N.parquet` files of at most a million rows.

    With *partition_by* there is a folder `COLUMN=VALUE` for each value (Hive's layout).
    """
    check_partition(columns, partition_by)
    tables = _tables(records, columns, partition_by)
    with raising_storage_lost(out), replaced_folder(out) as (place, system):
        _arrow("pyarrow.dataset").write_dataset(
            (batch for table in tables for batch in table.to_batches()),
            place,
            schema=_schema(columns),
            format="parquet",
            filesystem=system,
            partitioning=None if partition_by is None else [partition_by],
            partitioning_flavor=None if partition_by is None else "hive",
            basename_template="part-{i}.parquet",
            max_partitions=MOST_PARTITIONS,
            max_rows_per_file=ROWS_PER_FILE,
            max_rows_per_group=ROWS_PER_GROUP * 2,
            use_threads=False,
            preserve_order=True,
        )


def _folder_value(value: Any, column: str) -> Any:  # Any: what a column holds
    """*value* for the name of a folder. A long text is cut, with a hash of the whole behind it."""
    room = FOLDER_BYTES - len(quote(column, safe=""))
    if not isinstance(value, str) or len(quote(value, safe="")) <= room:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:16]
    kept = value[:room]
    while len(quote(kept, safe="")) > room - len(digest) - 1:
        kept = kept[:-1]
    return f"{kept}~{digest}"
