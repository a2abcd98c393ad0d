"""Sources that are not what they are taken for: each refused with what to do, and nothing taken in
silence.
"""

import io
import re
import tarfile

import pytest
from click.testing import CliRunner

from models.errors import ConfigError, DataError
from tests.training.photos import photo, write_photos
from training.data.check.commands import data
from training.data.source import list_source, load_dataset
from training.data.source_options import parse_splits


def shard(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "semi.csv",
            "{path} is a file and no folder; a table of paths and labels is given as csv:{path}",
        ),
        ("train-000.tar", "{path} is a file and no folder; an archive is given as tar:{path}"),
        ("z.zip", "{path} is a file and no folder; unpack it first"),
        ("z.tar.gz", "{path} is a file and no folder; unpack it first"),
        ("1.jpg", "{path} is a file and no folder; expected a folder that holds <class>/*.jpg"),
    ],
)
def test_a_file_in_place_of_a_folder(tmp_path, name, said):
    path = tmp_path / name
    path.write_bytes(b"x")
    for source in (str(path), f"folder:{path}"):
        with pytest.raises(DataError, match=f"^{re.escape(said.format(path=path))}"):
            load_dataset(source)


@pytest.mark.parametrize("source", ["", " ", "folder:", "csv:", "tar: "])
def test_an_empty_path(source, tmp_path, monkeypatch):
    write_photos(tmp_path, {"blue": 3, "red": 3})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^source .* names nothing; valid: digits, folder:PATH"):
        list_source(source)


@pytest.mark.parametrize("kind", ["csv", "tar"])
def test_a_folder_in_place_of_a_file(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=(
            rf"^{kind}:\. is a folder; give a file in it, such as {kind}:.*, or folder:\. for its"
            r" class folders"
        ),
    ):
        list_source(f"{kind}:.")


def test_emoji_codes_in_names_are_text(tmp_path):
    root = write_photos(tmp_path / "a:dog:", {"blue": 2, "red": 2})
    (root / "blue").rename(root / "x:dog:")
    told = CliRunner().invoke(data, ["check", str(root)], terminal_width=200)
    assert "x:dog:" in told.output
    assert "\N{DOG FACE}" not in told.output


def test_no_console_makes_emoji():
    from training import demo, progress

    for console in (progress.CONSOLE, demo.CONSOLE):
        with console.capture() as shown:
            console.print("folder:dog:")
        assert shown.get() == "folder:dog:\n"


def test_a_shard_cut_between_members_is_an_error(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        {
            f"{colour}/{index}.png": photo(colour, index)
            for colour in ("blue", "red")
            for index in range(3)
        },
    )
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[-1].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:offset])
    with pytest.raises(
        DataError,
        match=(
            r"ends without the mark of an archive's end\. If it was cut short.*head -c 1024"
            r" /dev/zero >> "
        ),
    ):
        list_source(f"tar:{path}")
    path.write_bytes(whole[:offset] + bytes(1024))
    assert len(list_source(f"tar:{path}").splits["all"]) == 5


def test_a_member_without_label_beside_labelled_ones_has_no_class(tmp_path):
    files = {f"imgs/{index}.png": photo("red", index) for index in range(4)}
    labels = {f"imgs/{index}.cls": b"ab"[index % 2 : index % 2 + 1] for index in range(3)}
    listing = list_source(f"tar:{shard(tmp_path / 'a.tar', files | labels)}")
    assert listing.labels == ("a", "b")
    assert "has 1 image without a class: a.tar/imgs/3.png" in listing.problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'path,label\na.png,x\nb.png,"y\nc.png,z\n',
            "the row that begins in line 3 has a quote that is never closed",
        ),
        (
            'path,label\na.png,"x"y\n',
            "the row that begins in line 2 cannot be read (',' expected after '\"')",
        ),
    ],
)
def test_a_quote_in_a_table_is_told_by_its_line(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)):
        list_source(f"csv:{tmp_path / 't.csv'}")


def test_white_space_around_labels_is_told(tmp_path):
    write_photos(tmp_path, {"blue": 3, "red": 3})
    rows = [
        f"{colour}/{index:03d}.png,{' ' * (index == 1)}{colour}"
        for colour in ("blue", "red")
        for index in range(3)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    told = list_source(f"csv:{tmp_path / 't.csv'}").warnings
    assert told == (
        (
            f"{tmp_path / 't.csv'} has white space around the label in 2 rows: 3, 6; the label is"
            " taken without it"
        ),
    )


def test_a_split_that_is_named_twice():
    with pytest.raises(ConfigError, match=r"^--split train=a,train=b: train is named twice"):
        parse_splits(["train=a", "train=b"])
