"""Splits and classes by the names that people give their folders: taken as they mean it, or refused
with the option that helps.
"""

import io
import re
import tarfile

import pytest
from click.testing import CliRunner

from models.errors import ConfigError, DataError
from tests.training.photos import photo, write_photos
from training.data.check.commands import data
from training.data.layout.names import alike, class_order, printable
from training.data.layout.splits import guess, split_of
from training.data.source import SourceOptions, list_source, load_dataset
from training.data.source_options import parse_splits

FEW = {"blue": 3, "red": 3}


def tree(root, names):
    """Files of *names* below *root*; each a photo of its own."""
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo("red", index))
    return root


def packed(root, names):
    """The same as one tar file."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "all.tar", "w") as archive:
        for index, name in enumerate(names):
            content, info = photo("red", index), tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return f"tar:{root / 'all.tar'}"


def listed(source, split=None):
    """Split -> names, and reason -> names, without the shard's."""
    listing = list_source(str(source), SourceOptions(split=split))
    unused = {}
    for entry in listing.unused:
        unused.setdefault(entry.reason, []).append(entry.name.removeprefix("all.tar/"))
    used = {
        key: [example.name.removeprefix("all.tar/") for example in examples]
        for key, examples in listing.splits.items()
    }
    return listing, used, unused


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("TRAIN", "train"),
        ("train_set", "train"),
        ("TrainSet", "train"),
        ("trainset", "train"),
        ("train2017", "train"),
        ("Validation Data", "val"),
        ("valid", "val"),
        ("vaL", "val"),
        ("tRAIN", "train"),
        ("dev", "val"),
        ("eval", "val"),
        ("Evaluation", "val"),
        ("Testing", "test"),
        ("test-images", "test"),
        ("train_station", None),
        ("trainers", None),
        ("test_train", None),
        ("ants", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_a_prefix_is_told_from_the_split():
    assert guess("seg_train") == ("train", "seg")
    assert guess("trainval") == (None, "trainval")


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("train_set", "test_set"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "test"),
    ],
    ids=str,
)
def test_splits_are_known_in_folders_and_archives_alike(tmp_path, make, names):
    source = make(
        tmp_path,
        [
            f"{name}/{colour}/{index}.png"
            for name in names
            for colour in ("blue", "red")
            for index in range(2)
        ],
    )
    listing, used, unused = listed(source)
    assert (listing.labels, listing.problems, unused) == (("blue", "red"), (), {})
    assert {split: len(found) for split, found in used.items()} == {"train": 4, "test": 4}


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["train/a/0.png", "train/b/0.png", "val/a/0.png", "Validation/b/0.png"],
            "has 2 folders for val: Validation, val; say which to take",
        ),
        (
            ["bus/0.png", "car/0.png", "train/0.png"],
            (
                "has train, named like a split but without class folders, among the folders bus,"
                " car; say --split none"
            ),
        ),
        (
            ["bus/0.png", "car/0.png", "train/x/0.png"],
            "has train, named like a split, among the folders bus, car; say --split train=train",
        ),
        (["train/0.png", "test/0.png"], "named like splits but without class folders; expected"),
        (
            ["seg_train/a/0.png", "seg_train/b/0.png", "other/x/1.png"],
            "has seg_train, which may be a split or a class; say --split train=seg_train, or",
        ),
    ],
    ids=["two", "class", "deep class", "all", "prefix"],
)
def test_what_may_be_a_mistake_is_refused_with_the_way_out(tmp_path, make, names, said):
    source = make(tmp_path, names)
    with pytest.raises(DataError, match=re.escape(said)):
        load_dataset(str(source))


def test_a_class_may_be_called_as_a_split(tmp_path):
    """Of 20 classes of PASCAL VOC one is `train`."""
    listing, used, _ = listed(tree(tmp_path, ["bus/0.png", "car/0.png", "train/0.png"]), split={})
    assert (listing.labels, used, listing.problems) == (
        ("bus", "car", "train"),
        {"all": ["bus/0.png", "car/0.png", "train/0.png"]},
        (),
    )


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
def test_splits_are_as_named_by_option(tmp_path, make):
    source = make(
        tmp_path,
        [
            f"{name}/{colour}/0.png"
            for name in ("Lernen", "Pruefen", "alt")
            for colour in ("blue", "red")
        ],
    )
    listing, used, unused = listed(source, split={"train": "lernen", "val": "Pruefen"})
    assert listing.problems == ()
    assert used == {
        "train": ["Lernen/blue/0.png", "Lernen/red/0.png"],
        "val": ["Pruefen/blue/0.png", "Pruefen/red/0.png"],
    }
    assert unused == {"not named by --split": ["alt/blue/0.png", "alt/red/0.png"]}
    with pytest.raises(DataError, match=r"has no folder .*gone.*--split train=gone"):
        load_dataset(str(source), options=SourceOptions(split={"train": "gone"}))


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
def test_a_flat_test_folder_is_named_and_left_alone(tmp_path, make):
    images = [
        f"{split}/{colour}/{index}.png"
        for split in ("train", "val")
        for colour in ("blue", "red")
        for index in range(2)
    ]
    source = make(tmp_path, [*images, "test/7.png", "seg_pred/8.png"])
    dataset = load_dataset(str(source))
    assert {split: len(found) for split, found in dataset.splits.items()} == {"train": 4, "val": 4}
    assert {entry.name.removeprefix("all.tar/"): entry.reason for entry in dataset.unused} == {
        "seg_pred/8.png": "beside the splits",
        "test/7.png": "folder test has no class folders",
    }


def test_a_station_is_a_class(tmp_path):
    listing, _, _ = listed(
        tree(tmp_path, ["church/0.png", "train_station/0.png", "test tube/0.png"])
    )
    assert (listing.labels, listing.problems) == (("church", "test tube", "train_station"), ())


def test_classes_one_folder_deeper_are_pointed_to(tmp_path):
    with pytest.raises(
        DataError, match=re.escape(f". If they lie in photos, use folder:{tmp_path}/photos") + "$"
    ):
        load_dataset(str(tree(tmp_path, ["photos/a/0.png", "photos/b/0.png"])))


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
def test_numbers_are_ordered_as_numbers_in_every_source(tmp_path, make):
    listing, _, _ = listed(make(tmp_path, [f"{name}/0.png" for name in ("10", "2", "1", "0")]))
    assert listing.labels == ("0", "1", "2", "10")


def test_the_order_of_mixed_names_is_that_of_text():
    assert class_order(["class 2", "class 10"]) == ("class 10", "class 2")
    assert class_order(["2", "10", "b"]) == ("10", "2", "b")
    assert class_order(["007", "7", "1" * 5000]) == ("007", "7", "1" * 5000)
    assert class_order(["²", "1"]) == ("1", "²")


def test_labels_that_differ_in_nothing_a_person_sees_are_found(tmp_path):
    assert alike(["Cat", "cat", "dog", " dog", "caf\u00e9", "cafe\u0301", "cow"]) == [
        ("Cat", "cat"),
        ("dog", " dog"),
        ("caf\u00e9", "cafe\u0301"),
    ]
    write_photos(tmp_path, FEW)
    (tmp_path / "Red").mkdir()
    (tmp_path / "Red/0.png").write_bytes(photo("red", 50))
    done = CliRunner().invoke(data, ["check", str(tmp_path)])
    assert "labels alike" in done.output
    assert "give what is one class one name" in done.output


def test_names_are_shown_as_text():
    assert printable("Zürich 東京") == "Zürich 東京"
    assert printable("caf\udce9\n\x1b[31m\u2028") == "caf\\xe9\\x0a\\x1b[31m\\u2028"


@pytest.mark.parametrize("texts", [["train"], ["train="], ["fold=a"], ["none", "train=a"]], ids=str)
def test_a_split_option_that_makes_no_sense(texts):
    with pytest.raises(
        ConfigError,
        match=r"^--split .*expected `none`, or pairs such as train=Training,val=Testing",
    ):
        parse_splits(texts)


def test_a_split_option_in_one_piece_or_several():
    assert (
        parse_splits(["train=Training,val=Testing"])
        == parse_splits(["train=Training", "val=Testing"])
        == {"train": "Training", "val": "Testing"}
    )
    assert (parse_splits(["none"]), parse_splits([])) == ({}, None)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (
            "digits",
            SourceOptions(split={}),
            "--split is for folder, csv, tar sources, and digits is none",
        ),
        (
            "tar:x.tar",
            SourceOptions(path_column="a"),
            "--path-column is for csv sources, and tar:x.tar is none",
        ),
    ],
)
def test_options_of_another_kind_of_source_are_refused(source, options, said):
    with pytest.raises(ConfigError, match=f"^{said}$"):
        list_source(source, options)


def test_a_part_of_the_classes_can_judge(tmp_path):
    write_photos(tmp_path / "test", {"red": 2})
    dataset = load_dataset(str(tmp_path), to_train=False)
    assert (dataset.labels, len(dataset.splits["test"])) == (("red",), 2)
    write_photos(tmp_path / "train", FEW)
    write_photos(tmp_path / "val", {"blue": 1})
    assert load_dataset(str(tmp_path), to_train=False).labels == ("blue", "red")


@pytest.mark.parametrize("make", [tree, packed], ids=["folder", "tar"])
def test_splits_inside_class_folders_are_refused_or_named(tmp_path, make):
    inside = [
        f"{label}/{split}/{index}.png"
        for label in ("ants", "bees")
        for split in ("train", "test")
        for index in range(2)
    ]
    source = make(tmp_path / "all", inside)
    with pytest.raises(
        DataError,
        match=r"inside its class folders: ants/t.*expected <split>/<class>.*--split none takes",
    ):
        load_dataset(str(source))
    listing, used, _ = listed(source, split={})
    assert (listing.labels, listing.problems, listing.warnings, len(used["all"])) == (
        ("ants", "bees"),
        (),
        (),
        8,
    )
    listing, _, _ = listed(make(tmp_path / "some", [*inside[:4], "bees/0.png", "bees/1.png"]))
    assert listing.problems == ()
    assert "inside its class folders: ants/t" in listing.warnings[0]
    assert "; their images belong to the class" in listing.warnings[0]
