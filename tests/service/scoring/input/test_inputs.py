"""Every kind of INPUT: what it holds, in which order, and what is said where it holds nothing."""

from __future__ import annotations

import datetime as dt
import errno
import io
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from models.errors import ConfigError, DataError
from models.pixels.endings import ENDINGS
from service.scoring.compute.ray_actor import row_of, unit_in
from service.scoring.input.inputs import MOST_ENDINGS, open_input, skipped_text
from service.scoring.input.items import UNIT_ITEMS, Fault, Item, units_of
from service.scoring.input.reader import Reader
from tests.service.scoring.jobs import photo


def paths(spec: object, **options) -> list[str]:
    return [item.path for item in open_input(str(spec), **options).items()]


def contents(spec: object, **options) -> list[object]:
    found = open_input(str(spec), **options)
    reader = Reader(found.base)
    return [reader.read(item) for item in found.items()]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_gives_its_images_by_name_and_passes_over_the_hidden_and_the_rest(tmp_path):
    folder = write(
        tmp_path / "in",
        "b/2.png",
        "b/10.JPG",
        "a/1.jpeg",
        "notes.txt",
        ".thumbs/1.jpg",
        "a/._1.jpeg",
        "c.webp",
    )
    (folder / "d.jpg").mkdir()
    assert paths(folder) == [
        f"{folder}/{name}" for name in ("a/1.jpeg", "b/10.JPG", "b/2.png", "c.webp", "d.jpg")
    ]
    assert paths(f"file://{folder}") == paths(folder)


def test_a_link_to_a_folder_is_followed_and_one_back_up_is_not(tmp_path):
    folder = write(tmp_path / "in", "a/1.jpg")
    write(tmp_path / "elsewhere", "2.jpg")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to(folder)
    assert paths(folder) == [f"{folder}/a/1.jpg", f"{folder}/b/2.jpg"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["1.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/b/3.jpg", "c/4.jpg"]),
        ("*/*.jpg", ["a/2.jpg", "c/4.jpg"]),
        ("{a,c}/?.jpg", ["a/2.jpg", "c/4.jpg"]),
        ("a/**", ["a/2.jpg", "a/b/3.jpg", "a/x.txt"]),
        ("[!a]/*", ["c/4.jpg"]),
        ("a/{1..3}.jpg", ["a/2.jpg"]),
    ],
)
def test_a_glob_gives_what_it_matches_in_order(tmp_path, pattern, names):
    folder = write(tmp_path / "in", "1.jpg", "a/2.jpg", "a/b/3.jpg", "c/4.jpg", "a/x.txt")
    found = [path for path in paths(f"{folder}/{pattern}") if Path(path).exists()]
    assert found == [f"{folder}/{name}" for name in names]


def test_a_relative_glob_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, "in/1.jpg", "in/a/2.jpg")
    monkeypatch.chdir(tmp_path)
    assert paths("in/**/*.jpg") == ["in/1.jpg", "in/a/2.jpg"]
    assert paths("i?/*.jpg") == ["in/1.jpg"]
    assert paths("./in/*.jpg") == ["./in/1.jpg"]


def test_a_folder_with_the_signs_of_a_glob_in_its_name_is_a_folder(tmp_path):
    assert paths(write(tmp_path / "in[1]", "1.jpg")) == [f"{tmp_path}/in[1]/1.jpg"]


def test_csv_paths_are_relative_to_the_table_and_other_columns_come_along(tmp_path):
    write(tmp_path / "in", "1.jpg", "2.jpg")
    table = tmp_path / "in" / "list.csv"
    table.write_text(
        f'\ufefffile,label,note\n1.jpg,ant,"a, b"\n{tmp_path}/in/2.jpg,bee,\n,cow,x\n3.jpg,only'
        " two\n",
        encoding="utf-8",
    )
    items = list(open_input(str(table), path_column="file").items())
    assert [item.path for item in items[:3]] == ["1.jpg", f"{tmp_path}/in/2.jpg", ""]
    assert [item.extra for item in items[:2]] == [
        (("label", "ant"), ("note", "a, b")),
        (("label", "bee"), ("note", "")),
    ]
    assert [item.fault.code for item in items[2:]] == ["no_path", "bad_row"]
    assert "line 5 has 2 cells, expected 3" in items[3].fault.reason
    assert contents(table, path_column="file")[:2] == [b"1.jpg", b"2.jpg"]
    assert next(
        item.extra for item in open_input(str(table), path_column="file", carry=("note",)).items()
    ) == (("note", "a, b"),)


def test_jsonl_keeps_types_and_a_damaged_line_is_a_row_of_its_own(tmp_path):
    table = tmp_path / "list.jsonl"
    table.write_text(
        '{"path": "1.jpg", "id": 7, "ok": true, "w": 0.5, "tags": ["x"]}\n\nnot json\n[1]\n{"path":'
        " null}\n",
        encoding="utf-8",
    )
    items = list(open_input(str(table)).items())
    assert items[0].extra == (("id", 7), ("ok", True), ("w", 0.5), ("tags", '["x"]'))
    assert [item.fault and item.fault.code for item in items] == [
        None,
        "bad_row",
        "bad_row",
        "no_path",
    ]


def test_parquet_rows_stream_with_their_types_and_dates_as_text(tmp_path):
    table = pa.table(
        {
            "path": [f"{n}.jpg" for n in range(3000)],
            "n": list(range(3000)),
            "day": [dt.date(2025, 1, 2)] * 3000,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    items = list(open_input(str(tmp_path / "list.parquet")).items())
    assert len(items) == 3000
    assert items[2999] == Item(
        "2999.jpg", url=f"{tmp_path}/2999.jpg", extra=(("n", 2999), ("day", "2025-01-02"))
    )
    pyarrow.parquet.write_table(
        pa.table({"path": ["1.jpg"], "raw": [b"1"]}), tmp_path / "raw.parquet"
    )
    assert paths(tmp_path / "raw.parquet", carry=()) == ["1.jpg"]


def test_a_table_without_the_path_column_names_those_that_it_has(tmp_path):
    (tmp_path / "list.csv").write_text("photo;label\n1.jpg;ant\n")
    named = (
        r"list.csv has no column for paths \(path, image, .*\); it has photo, label \(separated by"
        r" semicolons\). --path-column says"
    )
    with pytest.raises(ConfigError, match=named):
        paths(tmp_path / "list.csv")
    with pytest.raises(
        ConfigError,
        match=r"has no column 'nope'; it has photo, label. --carry names columns of the table",
    ):
        paths(tmp_path / "list.csv", path_column="photo", carry=("nope",))
    with pytest.raises(ConfigError, match=r"--carry names columns, but .* is no table"):
        paths(tmp_path, carry=("label",))


@pytest.mark.parametrize("name", ["Path", "image", "FILE", "file_name", "filename", "filepath"])
@pytest.mark.parametrize(
    ("ending", "separator"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")]
)
def test_paths_stand_in_the_columns_that_training_takes_between_any_separator(
    tmp_path, name, ending, separator
):
    table = tmp_path / f"list.{ending}"
    table.write_text(f'label{separator}"{name}"{separator}a, b\nant{separator}1.jpg{separator}x\n')
    (item,) = open_input(str(table)).items()
    assert (item.path, item.extra) == (
        "1.jpg",
        (("label", "ant"), ("a, b", "x")),
    ) or separator == ","


def test_of_two_columns_that_may_hold_the_paths_path_is_taken_and_otherwise_none(tmp_path):
    (tmp_path / "list.csv").write_text("file,path\n1.jpg,2.jpg\n")
    assert paths(tmp_path / "list.csv") == ["2.jpg"]
    (tmp_path / "list.csv").write_text("file,image\n1.jpg,2.jpg\n")
    with pytest.raises(
        ConfigError,
        match=(
            r"several columns that may hold the paths: file, image. --path-column says which does"
        ),
    ):
        paths(tmp_path / "list.csv")
    assert paths(tmp_path / "list.csv", path_column="image") == ["2.jpg"]


def test_every_ending_of_an_image_counts_and_other_files_are_counted(tmp_path):
    names = [f"a{ending.upper()}" for ending in ENDINGS]
    folder = write(tmp_path / "in", *names, "x.txt", "y.TXT", "film.mp4", "LICENSE", ".hidden")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    with tarfile.open(tmp_path / "in.tar", "w") as shard:
        shard.add(folder, "in")
    for source in (folder, tmp_path / "in.zip", tmp_path / "in.tar"):
        not_images = Counter[str]()
        assert sorted(
            item.path.rpartition("/")[2] for item in open_input(str(source)).items(not_images)
        ) == sorted(names)
        assert not_images == {".txt": 2, ".mp4": 1, "without an ending": 1}
    assert skipped_text(not_images) == "4 files are not images: 2 .txt, 1 .mp4, 1 without an ending"
    assert skipped_text({".txt": 1}) == "1 file is not an image: .txt"
    for name in names:
        assert paths(folder / name) == [f"{folder}/{name}"]
    write(tmp_path / "odd", *(f"x.{number}" for number in range(200)))
    list(open_input(str(tmp_path / "odd")).items(not_images := Counter()))
    assert len(not_images) == MOST_ENDINGS + 1
    assert not_images.total() == 200


@pytest.mark.parametrize("spec", ["", "/**/*.jpg"])
def test_a_link_that_leads_nowhere_and_a_closed_folder_cost_themselves_alone(
    tmp_path, monkeypatch, spec
):
    folder = write(tmp_path / "in", "a/1.jpg", "a/9.jpg", "closed/2.jpg")
    (folder / "a" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "a" / "gone").symlink_to("nowhere")
    (folder / "a" / "loop").symlink_to("loop")
    scandir = os.scandir

    def refused(place: str):  # root may look into every folder
        if place.endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    found = open_input(f"{folder}{spec}")
    reader = Reader(found.base)
    told = {item.path.removeprefix(f"{folder}/"): reader.read(item) for item in found.items()}
    reasons = {name: content.reason for name, content in told.items() if isinstance(content, Fault)}
    assert {name for name, content in told.items() if isinstance(content, bytes)} == {
        "a/1.jpg",
        "a/9.jpg",
    }
    assert set(reasons) == {"a/loop.jpg", "closed"} | (set() if spec else {"a/gone", "a/loop"})
    assert "symbolic links lead back to themselves" in reasons["a/loop.jpg"]
    assert "permission denied" in reasons["closed"]


def write_tar(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as shard:
        for number in range(count):
            for suffix, content in ((".jpg", b"%d" % number * 100), (".cls", b"1")):
                member = tarfile.TarInfo(f"{number:03d}{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return path


def test_tar_shards_are_read_in_place_in_their_order(tmp_path):
    write_tar(tmp_path / "s-01.tar", 2)
    write_tar(tmp_path / "s-00.tar", 3)
    assert paths(tmp_path / "s-*.tar") == [f"{tmp_path}/s-00.tar/00{n}.jpg" for n in range(3)] + [
        f"{tmp_path}/s-01.tar/00{n}.jpg" for n in range(2)
    ]
    assert contents(tmp_path / "s-{00..01}.tar") == [b"%d" % n * 100 for n in (0, 1, 2, 0, 1)]


def test_a_truncated_tar_gives_what_it_has_and_says_so_of_the_rest(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", 3).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 4 * 1024 + 512 + 50])
    found = contents(tmp_path / "cut.tar")
    assert found[:2] == [b"0" * 100, b"1" * 100]
    assert found[2].code == "undecodable_image"
    assert "the archive ends within it, after 50 of 100 bytes" in found[2].reason
    for end in (b"", b"\1" * 600, b"\1" * 100):
        (tmp_path / "bad.tar").write_bytes(whole[:2048] + end)
        assert [getattr(content, "code", None) for content in contents(tmp_path / "bad.tar")] == [
            None,
            "damaged_archive",
        ]


def test_a_zip_gives_its_images_and_names_a_damaged_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", photo(1))
        archive.writestr("__MACOSX/._1.png", b"")
        archive.writestr("a/2.png", b"2" * 1000)
    assert paths(tmp_path / "in.zip") == [
        f"{tmp_path}/in.zip/a/1.png",
        f"{tmp_path}/in.zip/a/2.png",
    ]
    assert contents(tmp_path / "in.zip") == [photo(1), b"2" * 1000]
    damaged = (tmp_path / "in.zip").read_bytes().replace(photo(1)[40:60], bytes(20), 1)
    at = damaged.index(b"a/2.png") + len("a/2.png")
    (tmp_path / "bad.zip").write_bytes(
        damaged[:at] + bytes([damaged[at] ^ 255]) + damaged[at + 1 :]
    )
    assert contents(tmp_path / "bad.zip")[1].code == "damaged_archive"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"absent does not exist; expected a folder, an image, a glob, a table"),
        ("list.csv", r"list.csv does not exist"),
        (
            "x.tar.gz",
            (
                r"x.tar.gz is a compressed tar, whose members cannot be read in place;"
                r" decompress it, or use zip or plain tar"
            ),
        ),
        ("no-*.tar", r"no-\*.tar matches nothing; expected shards such as"),
        ("text.txt", r"text.txt is neither an image by its name nor a table or archive"),
        ("not.zip", r"not.zip cannot be read as a zip file"),
        ("not.tar", r"not.tar cannot be read as a tar file without compression"),
        ("not.parquet", r"not.parquet is not a Parquet file"),
    ],
)
def test_what_cannot_be_listed_is_refused_with_what_was_expected(tmp_path, name, message):
    write(tmp_path, "text.txt", "not.zip", "not.parquet")
    (tmp_path / "not.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=message):
        paths(tmp_path / name)


def test_units_are_cut_in_order_and_their_digests_tell_inputs_apart():
    items = [Item(f"{n}.jpg") for n in range(UNIT_ITEMS * 2 + 3)]
    units = list(units_of(iter(items)))
    assert [(unit.index, unit.first_row, len(unit.items)) for unit in units] == [
        (0, 0, 64),
        (1, 64, 64),
        (2, 128, 3),
    ]
    assert [item for unit in units for item in unit.items] == items
    changed = list(units_of(iter([Item("other.jpg"), *items[1:]])))
    assert all(one.digest != other.digest for one, other in zip(units, changed, strict=True))
    assert units[0].digest == next(iter(units_of(iter(items[:64])))).digest


def test_listing_holds_no_more_than_one_folder(tmp_path):
    """The first item comes before a later folder is read."""
    write(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    items = open_input(str(tmp_path / "in")).items()
    assert next(items).path.endswith("a/1.jpg")
    (tmp_path / "in" / "b" / "2.jpg").rename(tmp_path / "in" / "b" / "3.jpg")
    assert next(items).path.endswith("b/3.jpg")


def test_a_unit_survives_its_way_to_a_node():
    """A path need not be UTF-8."""
    unit = next(
        units_of(
            iter(
                [
                    Item(
                        "a\udcff",
                        url="u\udcff",
                        member="m",
                        extra=(("n", 1), ("t", None)),
                        fault=Fault("not_found", "gone"),
                    )
                ]
            )
        )
    )
    assert unit_in(row_of(unit)) == unit
