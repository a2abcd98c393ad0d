"""Tables as spreadsheets and labelling tools write them, and archives as WebDataset does; what is
broken in them is said.
"""

import io
import re
import tarfile

import pytest

from models.errors import DataError
from tests.training.photos import photo
from training.data.source import SourceOptions, list_source, load_dataset


def images(folder, *names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo("red", index))


def used(source, **options):
    """Name -> label, of all splits."""
    listing = list_source(str(source), SourceOptions(**options))
    assert listing.problems == ()
    return {
        example.name: listing.labels[example.label]
        for examples in listing.splits.values()
        for example in examples
    }


def unused(source, **options):
    return {
        entry.name: entry.reason
        for entry in list_source(str(source), SourceOptions(**options)).unused
    }


@pytest.fixture
def table(tmp_path):
    images(tmp_path, "a.png", "sub/b.png")
    return tmp_path / "t.csv"


BOTH = {"a.png": "ant", "sub/b.png": "bee"}


@pytest.mark.parametrize(
    "content",
    [
        b"path;label\na.png;ant\nsub/b.png;bee\n",
        b"path\tlabel\r\na.png\tant\r\nsub/b.png\tbee\r\n",
        "path,label\na.png,ant\nsub/b.png,bee\n".encode("utf-16"),
        b"\xfe\xff" + "path;label\na.png;ant\nsub/b.png;bee\n".encode("utf-16-be"),
        b"\xef\xbb\xbfpath,label\na.png, ant \n\n,\nsub/b.png,bee\n",
        b"Filename,Category\na.png,ant\nsub/b.png,bee\n",
        b"FILE_NAME;other;Choice\na.png;1;ant\nsub/b.png;2;bee\n",
        b"note,path,label\n" + b"x" * 3_000_000 + b",a.png,ant\ny,sub/b.png,bee\n",
        b"filename, ant, bee\na.png, 1, 0\nsub/b.png,0,1\n",
    ],
    ids=[
        "semicolon",
        "tab",
        "utf-16",
        "utf-16-be",
        "mark and blanks",
        "aliases",
        "more aliases",
        "megabytes",
        "one-hot",
    ],
)
def test_tables_as_programs_write_them(table, content):
    table.write_bytes(content)
    assert used(f"csv:{table}") == BOTH


def test_backslashes_are_tried_as_slashes(table):
    table.write_text("path,label\na.png,ant\nsub\\b.png,bee\n")
    assert used(f"csv:{table}") == {"a.png": "ant", "sub\\b.png": "bee"}


def test_columns_by_option(table):
    table.write_text("photo,species,label\na.png,ant,x\nsub/b.png,bee,x\n")
    assert used(f"csv:{table}", path_column="Photo", label_column="species") == BOTH
    with pytest.raises(
        DataError, match=r"has no column gone \(--label-column\); found photo, species, label$"
    ):
        list_source(f"csv:{table}", SourceOptions(path_column="photo", label_column="gone"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "path,label,Label\na.png,x,y\n",
            "has more than one column label: rename or remove all but one",
        ),
        (
            "file,image,label\na.png,b,x\n",
            "has 2 columns for paths: file, image; say which with --path-column",
        ),
        (
            "path,width,height\na.png,10,20\n",
            (
                "has no column for labels, and is not a table of 0 and 1 for each class: in row 2,"
                " width is 10, height is 20"
            ),
        ),
        (
            'path,label\na.png,"x\n',
            "the row that begins in line 2 has a quote that is never closed",
        ),
        ("path,label\na\0.png,x\n", "1 row: 2 (a\\x00.png); paths are relative to"),
        (f"path,label\n{'x' * 5000},x\n", "names files that do not exist in 1 row: 2 (xxx"),
    ],
    ids=["twice", "two", "numbers", "quote", "zero byte", "long"],
)
def test_tables_that_cannot_be_used(table, content, said):
    table.write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        load_dataset(f"csv:{table}")


def test_a_row_of_a_one_hot_table_has_one_class(table):
    table.write_text("filename,ant,bee\na.png,1,1\nsub/b.png,0,0\n")
    assert list_source(f"csv:{table}").problems == (
        f"{table} has no label in 1 row: 3",
        f"{table} marks more than one class in 1 row: 2",
    )


def test_tables_of_several_splits_are_read_together(tmp_path):
    """As a labelling tool exports them: a folder for each split, with its images and its table."""
    for split in ("train", "valid"):
        images(tmp_path / split, "1.png", "2.png")
        (tmp_path / split / "_classes.csv").write_text(
            "filename, ant, bee\n1.png, 1, 0\n2.png, 0, 1\n"
        )
    dataset = load_dataset(f"csv:{tmp_path}/*/_classes.csv")
    assert {
        split: [example.name for example in found] for split, found in dataset.splits.items()
    } == {"train": ["train/1.png", "train/2.png"], "val": ["valid/1.png", "valid/2.png"]}
    assert dataset.unused == ()


def test_split_names_of_a_table_by_option(table):
    table.write_text("path,label,split\na.png,ant,fold1\nsub/b.png,bee,fold2\na.png,bee,old\n")
    listing = list_source(f"csv:{table}", SourceOptions(split={"train": "fold1", "val": "Fold2"}))
    assert {split: len(found) for split, found in listing.splits.items()} == {"train": 1, "val": 1}
    assert [(entry.name, entry.reason) for entry in listing.unused] == [
        ("t.csv, row 4", "not named by --split")
    ]
    assert len(list_source(f"csv:{table}", SourceOptions(split={})).splits["all"]) == 3


def test_what_no_row_names_is_named(table):
    images(table.parent, "sub/c.png", "more/d.png", "sub/deep/e.png")
    (table.parent / "notes.txt").write_text("x")
    (table.parent / "sub/.DS_Store").write_text("x")
    table.write_text("path,label\na.png,ant\nsub/b.png,bee\n")
    assert unused(f"csv:{table}") == {
        "more/": "in no row",
        "notes.txt": ".txt",
        "sub/.DS_Store": "left by macOS",
        "sub/c.png": "in no row",
        "sub/deep/": "in no row",
    }


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


RED, BLUE = photo("red", 1), photo("blue", 1)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            [("a.jpg", RED), ("a.cls", b"1"), ("b.jpg", BLUE), ("b.cls", b"0")],
            {"s.tar/a.jpg": "1", "s.tar/b.jpg": "0"},
        ),
        (
            [("x/a.b.jpg", RED), ("x/a.cls", b"1"), ("x/b.c.jpg", BLUE), ("x/b.cls", b"0")],
            {"s.tar/x/a.b.jpg": "1", "s.tar/x/b.c.jpg": "0"},
        ),
        (
            [
                ("a.png", RED),
                ("a.mask.png", BLUE),
                ("a.cls", b"x"),
                ("b.png", BLUE),
                ("b.cls", b"y"),
            ],
            {"s.tar/a.png": "x", "s.tar/b.png": "y"},
        ),
        (
            [
                ("a.png", RED),
                ("a.json", b'{"Label": "x"}'),
                ("b.png", BLUE),
                ("b.json", b'{"class": 7}'),
            ],
            {"s.tar/a.png": "x", "s.tar/b.png": "7"},
        ),
        (
            [
                ("a.png", RED),
                ("a.json", b'{"w": 1}'),
                ("a.txt", b" x\n"),
                ("b.png", BLUE),
                ("b.txt", b"y"),
            ],
            {"s.tar/a.png": "x", "s.tar/b.png": "y"},
        ),
        (
            [("ant/a.png", RED), ("ant/a.json", b"[" * 9999), ("bee/b.png", BLUE)],
            {"s.tar/ant/a.png": "ant", "s.tar/bee/b.png": "bee"},
        ),
    ],
    ids=["cls", "first dot", "mask", "json", "txt", "folders"],
)
def test_labels_beside_the_images_of_an_archive(tmp_path, members, expected):
    assert used(f"tar:{shard(tmp_path / 's.tar', members)}") == expected


def test_all_members_are_used_or_named(tmp_path):
    path = shard(
        tmp_path / "s.tar",
        [
            ("a.png", RED),
            ("a.png", BLUE),
            ("a.mask.png", RED),
            ("a.cls", b"x"),
            ("a.json", b"{}"),
            ("b.png", RED),
            ("b.cls", b"y"),
            ("c.txt", b"z"),
        ],
    )
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("empty", tarfile.DIRTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("__MACOSX/._a.png", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            archive.addfile(info)
    assert used(f"tar:{path}") == {"s.tar/a.png": "x", "s.tar/b.png": "y"}
    assert unused(f"tar:{path}") == {
        "s.tar/__MACOSX/._a.png": "left by macOS",
        "s.tar/a.json": ".json",
        "s.tar/a.mask.png": "beside the image of the same key",
        "s.tar/a.png": "replaced by a later member of the same name",
        "s.tar/c.txt": ".txt",
        "s.tar/empty/": "empty",
        "s.tar/link.png": "linked inside an archive",
        "s.tar/pipe": "not a regular file",
    }


def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path):
    for folder in ("one", "two"):
        shard(tmp_path / folder / "0.tar", [("ant/1.png", RED), ("bee/1.png", BLUE)])
    assert sorted(used(f"tar:{tmp_path}/*/0.tar")) == [
        f"{folder}/0.tar/{label}/1.png" for folder in ("one", "two") for label in ("ant", "bee")
    ]


def test_odd_names_in_an_archive_work(tmp_path):
    names = [f"{'d' * 300}/{'f' * 300}.png", "caf\udce9/1.png", "l\n/1.png"]
    path = shard(tmp_path / "s.tar", [(name, RED) for name in names])
    assert sorted(used(f"tar:{path}").values()) == ["caf\\xe9", "d" * 300, "l\\x0a"]


def test_half_a_surrogate_pair_in_a_label_is_written_as_its_code(tmp_path):
    path = shard(tmp_path / "s.tar", [("a.png", RED), ("a.json", b'{"label": "x\\ud800"}')])
    assert used(f"tar:{path}") == {"s.tar/a.png": "x\\ud800"}


def test_an_archive_that_is_damaged_in_the_middle_is_refused(tmp_path):
    """tarfile would end there without a word, and half of the images would be lost."""
    path = shard(tmp_path / "s.tar", [("ant/1.png", bytes(600)), ("bee/1.png", BLUE)])
    content = bytearray(path.read_bytes())
    content[1536:1540] = b"junk"
    path.write_bytes(content)
    with pytest.raises(
        DataError,
        match=r"s\.tar is damaged at byte 1536: copy it again, or pack one archive for each file$",
    ):
        list_source(f"tar:{path}")


def test_two_archives_in_one_file_are_refused(tmp_path):
    one, two = (
        shard(tmp_path / "1.tar", [("ant/1.png", RED)]),
        shard(tmp_path / "2.tar", [("bee/1.png", BLUE)]),
    )
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(DataError, match=r"1\.tar continues after the end of its archive at byte"):
        list_source(f"tar:{one}")
