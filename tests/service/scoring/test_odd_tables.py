"""Tables as people have them: no cell, key or type ends a job, and every output can be written and
read.
"""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import inspect
import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from packaging.requirements import Requirement

from models.errors import ConfigError, DataError
from service.scoring.input.inputs import open_input
from service.scoring.input.items import Item, distinct, json_text, scalar
from service.scoring.input.tables import MOST_COLUMNS
from service.scoring.input.text_rows import ROW_CHARACTERS
from service.scoring.output.tally import kinds_of
from tests.service.scoring.jobs import ROOT, failures, lines, photo, score

OUTS = ("o.jsonl", "o.csv", "o.parquet", "folder")


@pytest.fixture
def images(tmp_path) -> Path:
    """The folder of three images, `0.png` to `2.png`."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    return tmp_path


def jsonl(folder: Path, *rows: str) -> Path:
    (folder / "list.jsonl").write_text(
        "".join(f"{row}\n" for row in rows), encoding="utf-8", errors="surrogateescape"
    )
    return folder / "list.jsonl"


def items_of(table: Path, **options) -> list[Item]:
    return list(open_input(str(table), **options).items())


def parquet(folder: Path, *columns: tuple[str, pa.Array]) -> Path:
    paths = pa.array([f"{number}.png" for number in range(len(columns[0][1]))])
    table = pa.Table.from_arrays(
        [paths, *(column for _, column in columns)], names=["path", *(name for name, _ in columns)]
    )
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    return folder / "list.parquet"


def in_all_outputs(
    table: Path, store: Path, *options: object
) -> dict[str, list[dict[str, object]]]:
    """The rows of *table*'s job in each kind of output, read by readers of their own."""
    for out in OUTS:
        assert score(table, table.parent / out, *options, store=store).exit_code == 0
    for line in (table.parent / "o.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    with (table.parent / "o.csv").open(newline="", encoding="utf-8") as stream:
        texts = list(csv.DictReader(stream))
    return {
        "jsonl": lines(table.parent / "o.jsonl"),
        "csv": texts,
        "parquet": pyarrow.parquet.read_table(table.parent / "o.parquet").to_pylist(),
        "folder": pyarrow.dataset.dataset(table.parent / "folder").to_table().to_pylist(),
    }


def column(rows: list[dict[str, object]], name: str) -> list[object]:
    return [row[name] for row in rows]


def test_whole_numbers_beyond_int64_make_their_column_text(images, store):
    table = jsonl(
        images,
        '{"path": "0.png", "id": 1}',
        f'{{"path": "1.png", "id": {2**63}}}',
        f'{{"path": "2.png", "id": {-(2**70)}}}',
    )
    found = in_all_outputs(table, store)
    for rows in found.values():
        assert column(rows, "id") == ["1", str(2**63), str(-(2**70))]


def test_a_whole_number_that_a_float_would_change_makes_the_column_text():
    rows = [[("id", 2**53 + 1)], [("id", 7)]]
    assert kinds_of(rows) == {"id": "long"}
    assert kinds_of([*rows, [("id", 0.5)]]) == {"id": "text"}
    assert kinds_of([[("id", 2**53)], [("id", 0.5)]]) == {"id": "float"}


def test_mixed_types_are_written_as_json_writes_them(images, store):
    table = jsonl(
        images,
        '{"path": "0.png", "v": true}',
        '{"path": "1.png", "v": "n/a"}',
        '{"path": "2.png", "v": 0.5}',
    )
    for rows in in_all_outputs(table, store).values():
        assert column(rows, "v") == ["true", "n/a", "0.5"]


def test_lone_surrogates_are_written_out_and_a_path_of_them_is_a_dead_letter(images, store):
    table = jsonl(
        images,
        r'{"path": "0.png", "a\ud800": "x\udfffy", "b": ["\ud800"]}',
        r'{"path": "\ud800.png"}',
        r'{"path": "1.png"}',
    )
    for rows in in_all_outputs(table, store).values():
        assert column(rows, r"a\ud800")[0] == r"x\udfffy"
        assert column(rows, "b")[0] == r'["\ud800"]'
    assert failures(images / "o.jsonl")["\ud800.png"][0] == "unreadable"


def test_nan_and_infinity_are_null_in_json_and_numbers_elsewhere(images, store):
    found = in_all_outputs(
        jsonl(
            images,
            '{"path": "0.png", "v": NaN}',
            '{"path": "1.png", "v": -Infinity}',
            '{"path": "2.png", "v": 1}',
        ),
        store,
    )
    assert column(found["jsonl"], "v") == [None, None, 1.0]
    assert column(found["csv"], "v") == ["nan", "-inf", "1.0"]
    assert np.array_equal(column(found["parquet"], "v"), [np.nan, -np.inf, 1.0], equal_nan=True)
    assert (
        json_text(
            {
                "a": [np.float32("nan"), {"b": (float("inf"),)}],
                "c": np.array([np.nan, 0.1], np.float32),
            }
        )
        == '{"a": [null, {"b": [null]}], "c": [null, 0.1]}'
    )


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
INT64 = np.array([2**62, 0], dtype=np.int64)
TYPES = {
    "struct with bytes": (
        pa.array([{"bytes": b"\0" * 100, "path": None}, None], STRUCT),
        ['{"bytes": "<100 bytes>", "path": null}', None],
    ),
    "list of binary": (
        pa.array([[b"\xff\0", None], []], pa.list_(pa.binary())),
        ['["ff00", null]', "[]"],
    ),
    "binary": (pa.array([b"ab", None]), ["6162", None]),
    "fixed-size binary": (pa.array([b"\1\2", b"ab"], pa.binary(2)), ["0102", "6162"]),
    "view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "uint64": (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), 0]),
    "half": (pa.array([np.float16(0.5), None], pa.float16()), [0.5, None]),
    "decimal": (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
    "dictionary": (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
    "null": (pa.nulls(2), [None, None]),
    "nested nulls": (
        pa.array([[None, {"a": None}], None], pa.list_(pa.struct([("a", pa.int8())]))),
        ['[null, {"a": null}]', None],
    ),
    "map": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), ['[["k", 1]]', None]),
    "date": (pa.array([dt.date(2025, 1, 2), None]), ["2025-01-02", None]),
    "date out of range": (
        pa.array([2**30, 0], pa.int32()).cast(pa.date32()),
        ["<value out of range: 1073741824>", "1970-01-01"],
    ),
    "time": (pa.array([dt.time(1, 2, 3), None]), ["01:02:03.000000", None]),
    "timestamp": (
        pa.array([dt.datetime(2025, 1, 2, 3), None], pa.timestamp("s")),
        ["2025-01-02T03:00:00.000", None],
    ),
    "timestamp out of range": (
        pa.array(INT64).cast(pa.timestamp("us")),
        [f"<value out of range: {2**62}>", "1970-01-01T00:00:00.000000"],
    ),
    "nanoseconds": (
        pa.array([1, None]).cast(pa.timestamp("ns")),
        ["1970-01-01T00:00:00.000000001", None],
    ),
    "zone": (
        pa.array([3600, 0]).cast(pa.timestamp("s", "Europe/Paris")),
        ["1970-01-01T01:00:00.000Z", "1970-01-01T00:00:00.000Z"],
    ),
    "zone that nobody has": (
        pa.array([0, None]).cast(pa.timestamp("s", "Mars/Base")),
        ["1970-01-01T00:00:00.000Z", None],
    ),
    "nested timestamp out of range": (
        pa.array([[2**62], None], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us"))),
        [f'["<value out of range: {2**62}>"]', None],
    ),
    "duration": (pa.array([2**62, None]).cast(pa.duration("ns")), [2**62, None]),
    "text that is no UTF-8": (pa.array([b"\xff", b"a"]).view(pa.string()), [r"\udcff", "a"]),
}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_parquet_becomes_a_value_that_all_outputs_hold(images, name):
    array, expected = TYPES[name]
    items = items_of(parquet(images, ("v", array)))
    assert [dict(item.extra)["v"] for item in items] == expected
    assert [item.fault for item in items] == [None, None]


def test_all_types_of_parquet_at_once_reach_all_outputs(images, store):
    table = parquet(images, *((name, array) for name, (array, _) in TYPES.items()))
    found = in_all_outputs(table, store)
    assert found["parquet"] == found["folder"]
    for name, (_, expected) in TYPES.items():
        text = any(isinstance(value, str) for value in expected)
        wanted = [
            (
                value
                if value is None or not text
                else value
                if isinstance(value, str)
                else json.dumps(value)
            )
            for value in expected
        ]
        assert column(found["parquet"], name) == column(found["jsonl"], name) == wanted, name


def test_a_struct_with_two_fields_of_one_name_is_a_list_of_pairs(images):
    array = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array(["x", "y"])], names=["a", "a"])
    # Parquet refuses to write it with pyarrow; other writers do not.
    from service.scoring.input.parquet import ParquetTable

    table = ParquetTable.__new__(ParquetTable)
    table._arrow = pa
    assert table._values(array) == [[["a", 1], ["a", "x"]], [["a", 2], ["a", "y"]]]


def test_columns_of_one_name_are_numbered_whatever_their_case(images, store):
    table = parquet(
        images,
        ("a", pa.array([1, 2])),
        ("a", pa.array([3, 4])),
        ("Path", pa.array(["x", "y"])),
        ("PREDICTION", pa.array([5, 6])),
    )
    for rows in in_all_outputs(table, store).values():
        names = list(rows[0])
        assert names[:6] == ["row", "path", "a", "a_2", "Path_2", "PREDICTION_2"]
        assert len({name.lower() for name in names}) == len(names)
        assert [str(value) for value in column(rows, "a_2")] == ["3", "4"]
        assert column(rows, "Path_2") == ["x", "y"]
    assert [item.extra for item in items_of(table, carry=("a_2",))] == [
        (("a_2", 3),),
        (("a_2", 4),),
    ]
    summary = json.loads((images / "o.summary.json").read_text())
    assert summary["renamed"] == {"Path": "Path_2", "PREDICTION": "PREDICTION_2"}
    assert distinct(["a", "A", "a_2"], taken=["b"]) == ["a", "A_2", "a_2_2"]


def test_a_csv_with_two_columns_of_one_name_keeps_both_and_two_paths_are_refused(images):
    (images / "list.csv").write_text("path,id,id\n0.png,1,2\n")
    assert items_of(images / "list.csv")[0].extra == (("id", "1"), ("id_2", "2"))
    (images / "twice.csv").write_text("path,path\n0.png,1.png\n")
    with pytest.raises(
        ConfigError, match=r"twice.csv has 2 columns 'path', expected one; rename the others"
    ):
        items_of(images / "twice.csv")


def test_a_key_of_the_output_in_the_last_row_ends_no_job(images, store):
    rows = [f'{{"path": "{number % 3}.png"}}' for number in range(200)]
    table = jsonl(images, *rows, '{"path": "0.png", "probability": "high", "row": 7}')
    for found in in_all_outputs(table, store).values():
        assert (found[-1]["probability_2"], found[-1]["row_2"]) == (
            "high",
            "7" if found[-1]["row"] == "200" else 7,
        )


def test_dead_letters_are_scored_again_as_they_are(tmp_path, store):
    (tmp_path / "list.csv").write_text("path,reason,row\ngone.png,holiday,x\nok.png,work,y\n")
    (tmp_path / "ok.png").write_bytes(photo(1))
    assert score(tmp_path / "list.csv", tmp_path / "one.csv", store=store).exit_code == 0
    (letter,) = lines(tmp_path / "one.failed.jsonl")
    assert (letter["row"], letter["row_2"], letter["reason_2"]) == (0, "x", "holiday")
    (tmp_path / "gone.png").write_bytes(photo(2))
    assert score(tmp_path / "one.failed.jsonl", tmp_path / "two.jsonl", store=store).exit_code == 0
    (row,) = lines(tmp_path / "two.jsonl")
    assert (row["path"], row["row"], row["row_2"], row["code"], row["reason_2"]) == (
        "gone.png",
        0,
        0,
        "not_found",
        "holiday",
    )


def test_keys_without_end_become_dead_letters_and_not_columns(images):
    items = items_of(
        jsonl(
            images,
            *(f'{{"path": "0.png", "key {number}": 1}}' for number in range(MOST_COLUMNS + 5)),
        )
    )
    assert [item.fault and item.fault.code for item in items[MOST_COLUMNS - 1 :]] == [
        None,
        *["bad_row"] * 5,
    ]
    assert items[-1].extra == ()
    (images / "wide.csv").write_text(
        ",".join(["path", *(f"c{number}" for number in range(MOST_COLUMNS + 1))]) + "\n"
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"wide.csv has 1001 columns to copy, expected at most 1000; choose some with"
            r" --carry"
        ),
    ):
        items_of(images / "wide.csv")
    assert items_of(images / "wide.csv", carry=("c1",)) == []


BAD_JSON = {
    "a key twice": ('{"path": "0.png", "a": 1, "a": 2}', 'key "a" is there twice'),
    "nested too deep": (
        '{"path": "0.png", "a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "recursion",
    ),
    "an integer of 5000 digits": ('{"path": "0.png", "a": ' + "9" * 5000 + "}", "4300"),
    "a list": ("[1]", "is no JSON object"),
    "no JSON": ("{path: 1}", "is no JSON object"),
    "too long a line": (
        '{"path": "0.png", "a": "' + "x" * ROW_CHARACTERS + '"}',
        "is no JSON object",
    ),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_line_that_cannot_be_read_is_a_row_of_its_own(images, name):
    line, reason = BAD_JSON[name]
    items = items_of(jsonl(images, '{"path": "0.png"}', line, '{"path": "1.png"}'))
    assert [item.fault and item.fault.code for item in items] == [None, "bad_row", None]
    assert reason in items[1].fault.reason
    assert len(items[1].path) <= 200


def test_only_a_table_none_of_whose_first_rows_has_a_path_is_refused(images):
    assert [
        item.fault and item.fault.code
        for item in items_of(jsonl(images, "", "x", '{"id": 1}', '{"path": "0.png"}'))
    ] == ["bad_row", "no_path", None]
    with pytest.raises(
        ConfigError,
        match=(
            r"list.jsonl has no column for paths \(.*\); it has photo, id. --path-column says which"
            r" holds the paths"
        ),
    ):
        items_of(jsonl(images, *['{"photo": "0.png", "id": 1}'] * 100))


def test_dead_letters_show_json_and_no_python(images):
    deep = '{"path": ' + "[" * 900 + "]" * 900 + "}"
    *items, last = items_of(
        jsonl(
            images,
            '{"path": null}',
            '{"path": ["a"]}',
            '{"path": true}',
            '{"path": {"a": "\'"}}',
            '{"path": ""}',
            deep,
            "[null]",
        )
    )
    texts = ["null", '["a"]', "true", '{"a": "\'"}', "an empty text"]
    assert [item.fault.reason for item in items[:5]] == [
        f"column 'path' has no path: {text}" for text in texts
    ]
    assert [item.path for item in items[:5]] == ["", *texts[1:4], ""]
    assert items[5].fault.code == "no_path"
    assert last.fault.reason == "line 7 is not a JSON object: [null]"


def test_cells_of_megabytes_come_along_and_too_much_is_a_dead_letter(images, store):
    cells = ["x" * 5_000_000, '"' + "a,\n" * 300_000 + '"', "y" * (ROW_CHARACTERS + 1)]
    (images / "list.csv").write_text(
        "path,note\n"
        + "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells))
        + "0.png,end\n"
    )
    for out in ("o.jsonl", "o.parquet"):
        assert score(images / "list.csv", images / out, store=store).exit_code == 0
    for rows in (
        lines(images / "o.jsonl"),
        pyarrow.parquet.read_table(images / "o.parquet").to_pylist(),
    ):
        assert column(rows, "note") == [cells[0], cells[1][1:-1], "end"]
    (letter,) = lines(images / "o.failed.jsonl")
    assert letter["code"] == "bad_row"
    assert (
        "line 300004 is not a row of CSV: it has more than 8388608 characters" in letter["reason"]
    )
    many = jsonl(
        images,
        json.dumps({"path": "0.png"} | {f"c{number}": "x" * 100_000 for number in range(80)}),
    )
    assert items_of(many)[0].fault is None


def test_a_quote_that_is_never_closed_costs_its_own_line_alone(images):
    rows = "".join(f"0.png,{number}\n" for number in range(100))
    (images / "list.csv").write_text(
        f'path,note\n{rows}1.png,"open\n{rows}2.png,"closed" x\n{rows}'
    )
    items = items_of(images / "list.csv")
    assert len(items) == 302
    bad = {number: item for number, item in enumerate(items) if item.fault is not None}
    assert list(bad) == [100, 201]
    assert bad[100].path == '1.png,"open'
    assert "line 102 is no row of CSV" in bad[100].fault.reason
    assert "line 203 is not a row of CSV: ',' expected after '\"'" in bad[201].fault.reason
    assert items[-1].extra == (("note", "99"),)


def test_ragged_rows_nul_bytes_and_long_paths_cost_their_own_row_alone(images, store):
    rows = [
        "0.png,1",
        "1.png",
        "2.png,1,2",
        "0\0.png,1",
        "1.png,a\0b",
        "x" * 10_000 + ",1",
        "y" * 5000 + ",1",
        "nope://a/b.png,1",
        ",1",
    ]
    (images / "list.csv").write_text("path,note\n" + "\n".join(rows) + "\n\n", newline="")
    found = in_all_outputs(images / "list.csv", store)
    assert [row["path"] for row in found["parquet"]] == ["0.png", "1.png"]
    assert column(found["parquet"], "note") == ["1", "a\0b"]
    codes = [row["code"] for row in lines(images / "o.failed.jsonl")]
    assert codes == [
        "bad_row",
        "bad_row",
        "unreadable",
        "no_path",
        "unreadable",
        "unreadable",
        "no_path",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_tables_with_byte_order_marks_are_read(images, name, encoding):
    text = (
        "path,who\n0.png,Ünal\n" if name.endswith("csv") else '{"path": "0.png", "who": "Ünal"}\n'
    )
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (images / name).write_text(mark + text, encoding=encoding)
    assert items_of(images / name) == [
        Item("0.png", url=f"{images}/0.png", extra=(("who", "Ünal"),))
    ]


def test_bytes_that_are_no_utf8_name_their_file_and_are_written_out_elsewhere(images, store):
    Path(os.fsdecode(os.fsencode(images) + b"/\xe4.png")).write_bytes(photo(1))
    (images / "list.csv").write_bytes(b"path,who\n\xe4.png,M\xfcller\n")
    for rows in in_all_outputs(images / "list.csv", store).values():
        assert column(rows, "who") == [r"M\udcfcller"]
    assert lines(images / "o.jsonl")[0]["path"] == "\udce4.png"
    assert pyarrow.parquet.read_table(images / "o.parquet")["path"].to_pylist() == [r"\udce4.png"]


def test_a_row_group_that_is_damaged_costs_its_own_rows_alone(images):
    table = pa.table(
        {
            "path": [f"{number % 3}.png" for number in range(3000)],
            "n": np.random.default_rng(0).random(3000),
        }
    )
    pyarrow.parquet.write_table(
        table,
        images / "list.parquet",
        row_group_size=1000,
        compression="snappy",
        use_dictionary=False,
    )
    where = pyarrow.parquet.ParquetFile(images / "list.parquet").metadata.row_group(1).column(1)
    content = bytearray((images / "list.parquet").read_bytes())
    for at in range(where.data_page_offset, where.data_page_offset + 200):
        content[at] ^= 0xFF
    (images / "list.parquet").write_bytes(bytes(content))
    items = items_of(images / "list.parquet")
    assert len(items) == 3000
    assert [number for number, item in enumerate(items) if item.fault] == list(range(1000, 2000))
    assert items[1000].fault.code == "bad_row"
    assert "row 1000 of" in items[1000].fault.reason


def test_tables_without_rows_and_without_content_are_told_apart(images, store):
    (images / "list.csv").write_text("path,id\n")
    with pytest.raises(DataError, match=r"list.csv holds no images"):
        score(images / "list.csv", images / "out.csv", store=store)
    pyarrow.parquet.write_table(
        pa.table({"path": pa.array([], pa.string())}), images / "list.parquet"
    )
    with pytest.raises(DataError, match=r"list.parquet holds no images"):
        score(images / "list.parquet", images / "out.csv", store=store)
    (images / "empty.csv").touch()
    with pytest.raises(ConfigError, match=r"empty.csv has no column for paths \(.*\); it has none"):
        items_of(images / "empty.csv")


def test_more_partitions_than_pyarrow_allows_by_itself_have_a_folder_each(images, store):
    count = 1100
    (images / "list.csv").write_text(
        "path,who\n" + "".join(f"{number % 3}.png,customer {number}\n" for number in range(count))
    )
    assert (
        score(images / "list.csv", images / "out", "--partition-by", "who", store=store).exit_code
        == 0
    )
    assert {path.name for path in (images / "out").iterdir()} == {
        f"who=customer%20{number}" for number in range(count)
    }
    assert (
        sum(
            pyarrow.parquet.read_metadata(path).num_rows
            for path in (images / "out").rglob("part-*.parquet")
        )
        == count
    )


def test_values_that_no_folder_can_be_called_are_cut_with_a_hash(images, store):
    values = ["a/b", "..", "昆虫" * 100, "昆虫" * 100 + "2", "x" * 300, "", None]
    rows = [
        json.dumps({"path": f"{number % 3}.png", "who": value})
        for number, value in enumerate(values)
    ]
    assert (
        score(jsonl(images, *rows), images / "out", "--partition-by", "who", store=store).exit_code
        == 0
    )
    hive = pyarrow.dataset.partitioning(pa.schema([("who", pa.string())]), flavor="hive")
    found = {
        row["row"]: row["who"]
        for row in pyarrow.dataset.dataset(images / "out", partitioning=hive).to_table().to_pylist()
    }
    assert len(found) == len(values)
    assert [found[0], found[1]] == ["a/b", ".."]
    assert found[2].startswith("昆虫昆虫")
    assert found[3].startswith("昆虫昆虫")
    assert found[2] != found[3]
    assert found[4].startswith("x" * 100)


def test_a_partition_that_there_cannot_be_is_refused_after_the_first_unit(images, store):
    table = jsonl(images, *['{"path": "0.png", "id": 1}'] * 1000)
    for name, message in (
        ("nope", r"--partition-by 'nope' is not a column of the output; it has row, path, id"),
        ("top_k", r"holds lists"),
    ):
        with pytest.raises(ConfigError, match=message):
            score(table, images / "out", "--partition-by", name, "--overwrite", store=store)
        assert not (images / "out").exists()


def test_a_table_in_the_root_counts_from_there():
    from service.scoring.input.places import folder_of, joined

    expected = {
        "/photos.csv": "/a.png",
        "photos.csv": "./a.png",
        "/x/photos.csv": "/x/a.png",
        "s3://bucket/photos.csv": "s3://bucket/a.png",
        "http://host/photos.csv": "http://host/a.png",
        "http://host/x/photos.csv?sig=a/b": "http://host/x/a.png",
        "file:///photos.csv": "/a.png",
    }
    assert {place: joined(folder_of(place), "a.png") for place in expected} == expected


def test_a_scalar_is_what_every_output_holds():
    assert [
        scalar(value)
        for value in (1, 2**63, True, np.float16(0.5), b"x" * 65, decimal.Decimal("1e400"))
    ] == [1, str(2**63), True, 0.5, "<65 bytes>", "1E+400"]


def test_the_floor_of_pyarrow_is_the_release_that_has_what_the_code_calls():
    """pyarrow 20 has no `preserve_order`; with 21 these tests pass."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needed,) = (
        Requirement(text)
        for text in project["optional-dependencies"]["score"]
        if text.startswith("pyarrow")
    )
    assert str(needed.specifier) == ">=21"
    assert "preserve_order" in inspect.signature(pyarrow.dataset.write_dataset).parameters
