"""The finished table: Parquet, CSV or JSONL, or a folder of Parquet. It appears at once, complete, in the order of the input."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from models.durable import rename_durably, sync_tree
from models.errors import ConfigError
from service.scoring.places import file_system, is_remote, local_path, remove, replaced, require, scheme_of, storage_kept
from service.scoring.rows import Layout, columns_of
from service.scoring.unit import Record

FORMATS = (".parquet", ".csv", ".jsonl")
ROWS_PER_GROUP = 16_384
"""Rows in memory at a time; a row group of Parquet."""
ROWS_PER_FILE = 1_048_576
FOLDER = "folder"


def format_of(out: str, *, partition_by: str | None) -> str:
    """`.parquet`, `.csv`, `.jsonl`, or `folder` for a name without an ending. Raises `ConfigError` for any other."""
    name = out.rstrip("/").rpartition("/")[2]
    suffix = "" if out.endswith("/") or "." not in name[1:] else f".{name.rpartition('.')[2].lower()}"
    if suffix and suffix not in FORMATS:
        raise ConfigError(f"--out {out}: {suffix} is none of {', '.join(FORMATS)}; a name without an ending makes a folder of Parquet files")
    if suffix and partition_by:
        raise ConfigError(f"--partition-by makes a folder, and --out {out} is a file: leave out {suffix}")
    return suffix or FOLDER


def require_writer(out_format: str) -> None:
    """Raise `ConfigError` now, and not at the end of the job, if a library for *out_format* is missing."""
    if out_format in (".parquet", FOLDER):
        _arrow("pyarrow.parquet")


def _arrow(module: str) -> Any:  # Any: pyarrow ships no types
    return require(module, purpose="writing Parquet (.csv and .jsonl do without)")


def write_output(records: Iterable[Record], out: str, layout: Layout, *, partition_by: str | None) -> None:
    """Write *records* to *out*. Raises `StorageLost`, after which nothing or the old content is at *out*."""
    out_format = format_of(out, partition_by=partition_by)
    if out_format == FOLDER:
        _write_folder(records, out.rstrip("/"), layout, partition_by)
        return
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[out_format]
    with replaced(out) as stream:
        write(records, stream, layout)


def json_line(values: dict[str, Any]) -> bytes:
    """*values* as a line of JSON; a float32 is written with the fewest digits that give it back."""
    return json.dumps(values, default=_plain, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


def _plain(value: Any) -> Any:  # Any: a scalar or array of NumPy
    return float(str(value)) if isinstance(value, np.floating) else [float(text) for text in value.astype(str)]


def _write_jsonl(records: Iterable[Record], stream: IO[bytes], layout: Layout) -> None:
    for record in records:
        columns = columns_of(record, layout)
        for values in zip(*columns.values(), strict=True):
            stream.write(json_line(dict(zip(columns, values, strict=True))))


def _write_csv(records: Iterable[Record], stream: IO[bytes], layout: Layout) -> None:
    """Lists are written as JSON."""
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="", write_through=False)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(layout.names)
    for record in records:
        for values in zip(*columns_of(record, layout).values(), strict=True):
            writer.writerow([_cell(value) for value in values])
    # Not closed: the stream is the caller's to sync.
    text.flush()
    text.detach()


def _cell(value: Any) -> Any:  # Any: what the csv module can write
    return json.dumps(value, default=_plain, ensure_ascii=False) if isinstance(value, list | np.ndarray) else value


def _schema(layout: Layout) -> Any:  # Any: pyarrow ships no types
    pa = _arrow("pyarrow")

    kinds = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "": pa.string()}
    top = pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])
    chosen = {
        "top_k": pa.list_(top),
        "probabilities": pa.list_(pa.float32()),
        "embedding": pa.list_(pa.float32()),
        "abstained": pa.bool_(),
        "model": pa.dictionary(pa.int32(), pa.string()),
        "sha256": pa.string(),
    }
    fixed = {"row": pa.int64(), "path": pa.string(), "prediction": pa.string(), "probability": pa.float32()}
    types = {**fixed, **chosen, **{name: kinds[kind] for name, kind in layout.extra}}
    return pa.schema([(name, types[name]) for name in layout.names])


def _tables(records: Iterable[Record], layout: Layout) -> Iterator[Any]:
    """Tables of `ROWS_PER_GROUP` rows or a little more, the last one shorter."""
    pa = _arrow("pyarrow")

    schema = _schema(layout)
    gathered: list[Any] = []
    rows = 0
    for record in records:
        gathered.append(pa.table(_arrays(record, layout, schema), schema=schema))
        rows += len(record.rows)
        if rows >= ROWS_PER_GROUP:
            yield pa.concat_tables(gathered).combine_chunks()
            gathered, rows = [], 0
    yield pa.concat_tables(gathered or [schema.empty_table()]).combine_chunks()


def _arrays(record: Record, layout: Layout, schema: Any) -> dict[str, Any]:
    pa = _arrow("pyarrow")

    columns: dict[str, Any] = dict(columns_of(record, layout))
    for name in ("probabilities", "embedding"):
        if name in columns:
            values = record.arrays[name]
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
    # Paths need not be UTF-8, text in Parquet must be.
    columns["path"] = [path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for path in columns["path"]]
    return {name: value if isinstance(value, pa.Array) else pa.array(value, schema.field(name).type) for name, value in columns.items()}


def _write_parquet(records: Iterable[Record], stream: IO[bytes], layout: Layout) -> None:
    with _arrow("pyarrow.parquet").ParquetWriter(stream, _schema(layout), compression="zstd") as writer:
        for table in _tables(records, layout):
            writer.write_table(table)


def _write_folder(records: Iterable[Record], out: str, layout: Layout, partition_by: str | None) -> None:
    """`part-N.parquet`, of at most a million rows, or with *partition_by* a folder `COLUMN=VALUE` for each value (Hive's layout)."""
    if partition_by is not None and partition_by not in layout.names:
        raise ConfigError(f"--partition-by {partition_by!r} is no column of the output; it has {', '.join(layout.names)}")
    tables, schema = _tables(records, layout), _schema(layout)
    batches = (batch for table in tables for batch in table.to_batches())
    remote = is_remote(out)
    place = out if remote else str(Path(local_path(out)).with_name(f".{Path(local_path(out)).name}.tmp"))
    with storage_kept(out):
        remove(place)
        _arrow("pyarrow.dataset").write_dataset(
            batches,
            place.partition("://")[2] if remote else place,
            schema=schema,
            format="parquet",
            filesystem=file_system(scheme_of(out)) if remote else None,
            partitioning=None if partition_by is None else [partition_by],
            partitioning_flavor=None if partition_by is None else "hive",
            basename_template="part-{i}.parquet",
            max_rows_per_file=ROWS_PER_FILE,
            max_rows_per_group=ROWS_PER_GROUP * 2,
            use_threads=False,
            preserve_order=True,
        )
        if not remote:
            sync_tree(Path(place))
            remove(out)
            rename_durably(Path(place), Path(local_path(out)))
