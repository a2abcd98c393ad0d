"""Tables, shards and torchvision's data sets as sources: real files, and the exact words for each
that cannot be used.
"""

import gzip
import io
import re
import struct
import tarfile
import urllib.error
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import FakeData

from models.errors import DataError
from models.package.manifest import PreprocessSpec
from models.pixels.endings import LISTED
from models.pixels.preprocess import decode
from tests.training.photos import photo
from training.data.index import make_index
from training.data.layout.names import class_order, few_of
from training.data.layout.splits import SPLIT_OF
from training.data.source import list_source, load_dataset
from training.data.sources import torchvision as torchvision_source
from training.data.sources.patterns import expand_braces
from training.data.sources.rows import EXPECTED
from training.data.sources.torchvision import SETS, class_names, examples

SPEC = PreprocessSpec(resize_size=32, crop=(32, 32))
COLOURS = ("blue", "red")


def refused(source, expected, **options):
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        load_dataset(str(source), **options)


def counts(dataset):
    return {
        split: dict(Counter(dataset.labels[example.label] for example in found))
        for split, found in dataset.splits.items()
    }


def fingerprint(dataset):
    return make_index(dataset, SPEC, most=0.0).fingerprint()


def written(folder, rows, *, header="path,label,split", encoding="utf-8"):
    """A table of *rows*, and the photos that it names."""
    for row in rows:
        path, label = row.split(",")[:2]
        if path and label in COLOURS:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(photo(label, len(path) + int(re.sub(r"\D", "", path) or 0)))
    table = folder / "photos.csv"
    table.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return table


def rows_of(split, count, *, first=0):
    return [
        f"{split or 'all'}/{label}{index}.png,{label}" + (f",{split}" if split else "")
        for label in COLOURS
        for index in range(first, first + count)
    ]


def test_a_table_with_splits_is_taken_as_it_is(tmp_path):
    table = written(tmp_path, [*rows_of("train", 4), *rows_of("valid", 2)], encoding="utf-8-sig")
    dataset = load_dataset(f"csv:{table}")
    assert dataset.source == f"csv:{table}"
    assert dataset.labels == COLOURS
    assert counts(dataset) == {"train": {"blue": 4, "red": 4}, "val": {"blue": 2, "red": 2}}
    assert dataset.splits["train"][0].name == "train/blue0.png"
    assert dataset.splits["train"][0].read() == (tmp_path / "train/blue0.png").read_bytes()


def test_a_table_without_splits_is_cut_by_the_seed(tmp_path):
    table = written(tmp_path, rows_of("", 10), header="path,label")
    dataset = load_dataset(f"csv:{table}", seed=3)
    assert counts(dataset) == {
        "train": {"blue": 6, "red": 6},
        "val": {"blue": 2, "red": 2},
        "test": {"blue": 2, "red": 2},
    }
    assert load_dataset(f"csv:{table}", seed=3) == dataset


def test_a_table_may_have_more_columns_in_any_order(tmp_path):
    (tmp_path / "a.png").write_bytes(photo("red", 1))
    table = tmp_path / "t.csv"
    table.write_text('label, note ,path\nred,"says, ""hello""",a.png\nblue,,a.png\n')
    assert [
        (example.name, example.label) for example in list_source(f"csv:{table}").splits["all"]
    ] == [("a.png", 1), ("a.png", 0)]


def test_labels_that_are_numbers_keep_the_order_of_numbers():
    assert class_order({"10", "9", "0"}) == ("0", "9", "10")
    assert class_order({"10", "9", "a"}) == ("10", "9", "a")


def test_a_long_list_is_shortened():
    assert few_of(range(5)) == "0, 1, 2, 3, 4"
    assert few_of(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_a_table_that_is_none(tmp_path):
    absent = tmp_path / "absent.csv"
    refused(f"csv:{absent}", f"{absent}: No such file or directory; {EXPECTED}")
    table = tmp_path / "t.csv"
    table.write_text("photo,class_index\n")
    refused(
        f"csv:{table}",
        f"{table} has no column for paths and none for labels; found photo, class_index;"
        f" {EXPECTED}",
    )
    table.write_text("")
    refused(
        f"csv:{table}",
        f"{table} has no column for paths and none for labels; found none; {EXPECTED}",
    )
    table.write_bytes(b"path,label\n\xff\xfe,red\n")
    with pytest.raises(
        DataError,
        match=(
            f"^{re.escape(str(table))} is not a CSV file in UTF-8, or in UTF-16 with a byte-order"
            " mark: 'utf-8' codec can't decode byte 0xff"
        ),
    ):
        load_dataset(f"csv:{table}")
    table.write_text("path,label\n")
    refused(f"csv:{table}", f"{table} has no rows below its header")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("train/x.png,,train", "{table} has no label in 1 row: 10"),
        (",red,train", "{table} has no path in 1 row: 10"),
        (
            "train/red0.png,red,fold1",
            "{table} has unknown splits in 1 row: 10 (fold1); valid: {valid}",
        ),
        ("train/red0.png,red,", "{table} has unknown splits in 1 row: 10 (empty); valid: {valid}"),
        ("train/red0.png,red", "{table} has 3 columns, but not in 1 row: 10 (2)"),
        ("train/red0.png,red,train,x", "{table} has 3 columns, but not in 1 row: 10 (4)"),
        (
            "gone.png,green,train",
            (
                "{table} names files that do not exist in 1 row: 10 (gone.png); paths are relative"
                " to {folder}"
            ),
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(tmp_path, row, expected):
    table = written(tmp_path, [*rows_of("train", 2), *rows_of("val", 2)])
    table.write_text(table.read_text() + row + "\n")
    valid = (
        f"{', '.join(SPLIT_OF)}. Say what they mean, as in --split train=NAME,val=NAME, or --split"
        " none to split again"
    )
    refused(f"csv:{table}", expected.format(table=table, folder=tmp_path, valid=valid))


def test_a_table_of_one_class_or_without_train(tmp_path):
    refused(
        f"csv:{written(tmp_path, ['a.png,red,train'])}",
        f"{tmp_path}/photos.csv has 1 class (red); a classifier needs 2 or more",
    )
    table = written(tmp_path, rows_of("test", 2))
    refused(f"csv:{table}", f"{table} has test but no train split to train on")
    assert counts(load_dataset(f"csv:{table}", to_train=False)) == {"test": {"blue": 2, "red": 2}}
    table = written(tmp_path, [*rows_of("train", 3), "v.png,red,val"])
    refused(
        f"csv:{table}",
        f"csv:{table}: split val has no images of blue. 7 images used; 2 not read: 2 in no row",
    )


def shard(path, members):
    """A plain tar file of *members*, name -> bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def keyed(count, *, first=0, suffix="cls"):
    """Members as WebDataset writes them: a photo and its class index under one key."""
    members = {}
    for index in range(first, first + count):
        for label, colour in enumerate(COLOURS):
            members[f"{colour}.{index}.png"] = photo(colour, index)
            members[f"{colour}.{index}.{suffix}"] = f"{label}\n".encode()
            members[f"{colour}.{index}.json"] = b"{}"
    return members


def test_shards_are_read_in_place_with_their_labels(tmp_path):
    shard(tmp_path / "photos-train-000.tar", keyed(2))
    shard(tmp_path / "photos-train-001.tar", keyed(2, first=2, suffix="txt"))
    shard(tmp_path / "photos-val-000.tar", keyed(1, first=9))
    source = f"tar:{tmp_path}/photos-{{train,val}}-*.tar"
    dataset = load_dataset(source)
    assert (dataset.source, dataset.labels) == (source, ("0", "1"))
    assert counts(dataset) == {"train": {"0": 4, "1": 4}, "val": {"0": 1, "1": 1}}
    assert dataset.splits["train"][5].name == "photos-train-001.tar/red.2.png"
    assert dataset.splits["train"][5].read() == photo("red", 2)
    assert dataset.splits["train"][5].head(4) == b"\x89PNG"
    assert [(entry.name, entry.reason) for entry in list_source(source).unused][:2] == [
        ("photos-train-000.tar/blue.0.json", ".json"),
        ("photos-train-000.tar/red.0.json", ".json"),
    ]
    assert fingerprint(dataset) == fingerprint(load_dataset(source))


def test_class_folders_in_shards_and_what_is_no_image(tmp_path):
    folders = {
        f"./photos/{split}/{colour}/may/{index}.png": photo(colour, index)
        for split in ("train", "val")
        for colour in COLOURS
        for index in range(4)
    }
    path = shard(
        tmp_path / "all.tar",
        {**folders, "photos/notes.md": b"read me", "photos/train/red/._0.png": b"AppleDouble"},
    )
    listing = list_source(f"tar:{path}")
    assert listing.labels == COLOURS
    assert {split: len(found) for split, found in listing.splits.items()} == {"train": 8, "val": 8}
    assert [(entry.name, entry.reason) for entry in listing.unused] == [
        ("all.tar/photos/train/red/._0.png", "left by macOS"),
        ("all.tar/photos/notes.md", ".md"),
    ]

    plain = shard(
        tmp_path / "plain.tar",
        {
            f"photos/{colour}/{index}.png": photo(colour, index)
            for colour in COLOURS
            for index in range(5)
        },
    )
    assert counts(load_dataset(f"tar:{plain}")) == {
        "train": {"blue": 3, "red": 3},
        "val": {"blue": 1, "red": 1},
        "test": {"blue": 1, "red": 1},
    }


def test_the_folder_of_the_shards_may_name_the_split(tmp_path):
    for split in ("train", "val"):
        shard(tmp_path / split / "0.tar", keyed(2))
    assert counts(load_dataset(f"tar:{tmp_path}/*/0.tar")) == {
        "train": {"0": 2, "1": 2},
        "val": {"0": 2, "1": 2},
    }


def test_links_in_a_shard_are_never_followed(tmp_path):
    path = shard(tmp_path / "s.tar", keyed(3))
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("9.png", tarfile.SYMTYPE),
            ("8.png", tarfile.LNKTYPE),
            ("7.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../../etc/passwd"
            archive.addfile(info)
    assert len(list_source(f"tar:{path}").splits["all"]) == 6


def test_braces_are_choices_and_ranges():
    assert expand_braces("a/{train,val}-{08..10}.tar") == [
        f"a/{split}-{number}.tar" for split in ("train", "val") for number in ("08", "09", "10")
    ]
    assert expand_braces("plain") == ["plain"]


def test_shards_that_cannot_be_used(tmp_path):
    refused(
        f"tar:{tmp_path}/*.tar",
        f"tar:{tmp_path}/*.tar: no file matches; expected shards such as"
        " tar:shards/{train,val}-*.tar",
    )
    path = shard(
        tmp_path / "a.tar", {"0.png": photo("red", 0), "1.png": photo("red", 1), "1.cls": b"red"}
    )
    refused(
        f"tar:{path}",
        f"tar:{path} has 1 image without a class: a.tar/0.png; expected <key>.cls, a label in"
        " <key>.json, or a class folder",
    )
    path = shard(
        tmp_path / "b.tar", {"train/red/0.png": photo("red", 0), "blue/1.png": photo("blue", 1)}
    )
    ways = (
        "say --split train=train to leave the others out, or --split none if all of them are"
        " classes"
    )
    refused(
        f"tar:{path}", f"tar:{path} has train, named like a split, among the folders blue; {ways}"
    )
    shard(tmp_path / "x-train.tar", keyed(3))
    shard(tmp_path / "x.tar", keyed(1))
    loose = "x.tar/blue.0.png, x.tar/red.0.png"
    refused(
        f"tar:{tmp_path}/x*.tar",
        f"tar:{tmp_path}/x*.tar has 2 images without a split, while others have one: {loose}",
    )
    path = shard(tmp_path / "c.tar", {"readme": b"none"})
    refused(f"tar:{path}", f"tar:{path} holds no images; looked for {LISTED}")
    path = shard(tmp_path / "d.tar", {"red/0.png": photo("red", 0)})
    refused(f"tar:{path}", f"tar:{path} has 1 class (red); a classifier needs 2 or more")
    packed = tmp_path / "e.tar"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(
        DataError,
        match=f"^shard {re.escape(str(packed))} cannot be read as a tar file without compression: ",
    ):
        load_dataset(f"tar:{packed}")


def test_a_shard_that_is_cut_short_is_named_with_the_member(tmp_path):
    path = shard(tmp_path / "cut.tar", {"red/0.png": photo("red", 0)})
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(
        DataError,
        match=(
            f"^shard {re.escape(str(path))} (is cut short in red/0.png: copy the complete"
            " file|cannot be read)"
        ),
    ):
        load_dataset(f"tar:{path}")


def test_a_shard_that_went_away_is_named(tmp_path):
    path = shard(tmp_path / "s.tar", keyed(3))
    dataset = load_dataset(f"tar:{path}")
    path.unlink()
    with pytest.raises(
        DataError,
        match=f"^{re.escape(str(path))}: there is no such file or folder; check the path$",
    ):
        dataset.splits["train"][0].read()


def idx(array):
    """*array* in the format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder with MNIST's four files: forty scans to learn, twenty to judge."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 20)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            idx((np.arange(count) % 10).astype(np.uint8))
        )
    return tmp_path


def test_torchvision_arrays_become_png_when_they_are_read(mnist):
    dataset = load_dataset(f"torchvision:MNIST:{mnist}")
    assert dataset.source == f"torchvision:MNIST:{mnist}"
    assert dataset.labels[:2] == ("0 - zero", "1 - one"), "torchvision's order, not the sorted one"
    assert {split: len(found) for split, found in dataset.splits.items()} == {
        "train": 30,
        "test": 20,
        "val": 10,
    }
    example = dataset.splits["test"][3]
    assert (example.name, example.label) == ("test/000003.png", 3)
    stored = np.frombuffer(
        (mnist / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8
    ).reshape(20, 28, 28)[3]
    assert np.array_equal(np.asarray(decode(example.read(), SPEC))[:, :, 0], stored)
    assert make_index(dataset, SPEC, most=0.0).unreadable == {}
    assert fingerprint(dataset) == fingerprint(load_dataset(f"torchvision:MNIST:{mnist}"))


def test_torchvision_files_are_read_as_they_are(tmp_path):
    for label in COLOURS:
        folder = tmp_path / "eurosat/2750" / label
        folder.mkdir(parents=True)
        for index in range(5):
            (folder / f"{index}.jpg").write_bytes(photo(label, index, image_format="JPEG"))
    dataset = load_dataset(f"torchvision:EuroSAT:{tmp_path}")
    assert dataset.labels == COLOURS
    assert counts(dataset) == {
        "train": {"blue": 3, "red": 3},
        "val": {"blue": 1, "red": 1},
        "test": {"blue": 1, "red": 1},
    }
    for example in dataset.splits["train"]:
        assert example.path is not None
        assert (
            example.read()
            == (
                tmp_path / "eurosat/2750" / dataset.labels[example.label] / example.path.name
            ).read_bytes()
        )


def test_files_of_a_format_that_is_not_read_are_encoded_again(tmp_path):
    for label in (0, 1):
        folder = tmp_path / f"gtsrb/GTSRB/Training/{label:05d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 20), (10, 20, 30 * label)).save(folder / "0.ppm")
    example, _ = examples(
        torchvision_source._open("GTSRB", str(tmp_path), {"split": "train"}), prefix="train"
    )
    assert (example.name, example.path) == ("train/000000.png", None)
    assert decode(example.read(), SPEC).getpixel((0, 0)) == (10, 20, 0)
    (tmp_path / "gtsrb/GTSRB/Training/00000/0.ppm").unlink()
    with pytest.raises(DataError, match=r"^image 0 of GTSRB: .*No such file"):
        example.read()


def test_a_data_set_without_names_and_targets_is_asked_for_each():
    fake = FakeData(size=12, image_size=(3, 8, 8), num_classes=3)
    made = examples(fake, prefix="train")
    assert [example.label for example in made] == [int(fake[index][1]) for index in range(12)]
    assert class_names(fake) == ("0", "1", "2")
    assert np.array_equal(np.asarray(decode(made[7].read(), SPEC)), np.asarray(fake[7][0]))


def test_the_first_of_several_names_of_a_class_is_taken():
    fake = FakeData(size=1)
    fake.classes = [("tench", "Tinca tinca"), "dog"]
    assert class_names(fake) == ("tench", "dog")


def test_every_data_set_of_the_table_is_torchvisions():
    from torchvision import datasets

    assert len(SETS) == 19
    assert [name for name in SETS if not hasattr(datasets, name)] == []


def test_an_unknown_data_set_is_answered_with_the_known_ones():
    with pytest.raises(
        DataError,
        match=(
            r"^torchvision:Cifar10: no such data set; valid: CIFAR10, CIFAR100, Country211, DTD, "
        ),
    ):
        load_dataset("torchvision:Cifar10")


def test_a_given_folder_is_never_downloaded_to(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_, **__: pytest.fail("nobody asked for a download")
    )
    root = tmp_path / "empty"
    refused(
        f"torchvision:MNIST:{root}",
        f"torchvision:MNIST:{root}: {root} does not hold the files of MNIST (Dataset not found. You"
        " can use download=True to download it); torchvision:MNIST would download them",
    )


def test_a_download_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*_args, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        DataError,
        match=(
            r"^torchvision:CIFAR10 cannot be downloaded to artifacts/datasets: .*no route to host"
        ),
    ) as refusal:
        load_dataset("torchvision:CIFAR10")
    assert str(refusal.value).endswith(
        "without a network, bring the files and say torchvision:CIFAR10:ROOT"
    )
