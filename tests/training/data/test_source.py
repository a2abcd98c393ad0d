"""A data set from a SOURCE string: every layout that folders come in, and the exact words for each
that cannot be trained on.
"""

import re
from collections import Counter

import pytest

from models.errors import DataError
from models.package.manifest import PreprocessSpec
from models.pixels.endings import LISTED
from tests.training.photos import photo, write_photos
from training.data.index import make_index
from training.data.source import Dataset, Example, load_dataset, stratified

SPEC = PreprocessSpec(resize_size=32, crop=(32, 32))
FEW = {"blue": 3, "red": 3}


def refused(source, expected, **options):
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        load_dataset(str(source), **options)


def counts(dataset):
    return {
        split: dict(sorted(Counter(dataset.labels[example.label] for example in examples).items()))
        for split, examples in dataset.splits.items()
    }


def names(examples):
    return [example.name for example in examples]


def test_given_splits_are_taken_as_they_are(tmp_path):
    write_photos(tmp_path / "train", {"red": 4, "blue": 2})
    write_photos(tmp_path / "val", {"red": 1, "blue": 3})
    dataset = load_dataset(f"folder:{tmp_path}")

    assert dataset.labels == ("blue", "red")
    assert dataset.source == f"folder:{tmp_path}"
    assert counts(dataset) == {"train": {"blue": 2, "red": 4}, "val": {"blue": 3, "red": 1}}
    assert dataset.held_out == "val"
    assert names(dataset.splits["val"]) == [
        "val/blue/000.png",
        "val/blue/001.png",
        "val/blue/002.png",
        "val/red/000.png",
    ]
    assert dataset.splits["val"][3].read() == photo("red", 0)


def test_a_test_folder_judges_where_there_is_one(tmp_path):
    for split in ("train", "validation", "test"):
        write_photos(tmp_path / split, FEW)
    dataset = load_dataset(str(tmp_path))
    assert sorted(dataset.splits) == ["test", "train", "val"]
    assert dataset.held_out == "test"


def test_validation_is_cut_from_train_where_it_is_missing(tmp_path):
    write_photos(tmp_path / "train", {"red": 10, "blue": 20})
    write_photos(tmp_path / "test", FEW)
    dataset = load_dataset(str(tmp_path))
    assert counts(dataset) == {
        "train": {"blue": 16, "red": 8},
        "test": FEW,
        "val": {"blue": 4, "red": 2},
    }
    assert not set(names(dataset.splits["train"])) & set(names(dataset.splits["val"]))


def test_a_folder_without_splits_is_cut_into_the_same_shares_of_each_class(tmp_path):
    write_photos(tmp_path, {"red": 40, "blue": 10})
    dataset = load_dataset(str(tmp_path), seed=1)
    assert counts(dataset) == {
        "train": {"blue": 6, "red": 24},
        "val": {"blue": 2, "red": 8},
        "test": {"blue": 2, "red": 8},
    }
    assert sorted(
        name for examples in dataset.splits.values() for name in names(examples)
    ) == sorted(
        f"{colour}/{index:03d}.png"
        for colour, count in (("blue", 10), ("red", 40))
        for index in range(count)
    )
    assert load_dataset(str(tmp_path), seed=1) == dataset
    assert load_dataset(str(tmp_path), seed=2).splits["test"] != dataset.splits["test"]


def test_three_images_of_a_class_are_enough_for_three_splits(tmp_path):
    dataset = load_dataset(str(write_photos(tmp_path, FEW)))
    one_each = {"blue": 1, "red": 1}
    assert counts(dataset) == {"train": one_each, "val": one_each, "test": one_each}


def test_nearly_all_images_keep_their_split_when_the_folder_grows():
    """Otherwise a retrained model would be compared with one that was trained on the images of the
    comparison.
    """
    grown = [Example(name=f"a/{index}.png", label=0) for index in range(400)]
    was = stratified(grown[::2], {"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)
    now = stratified(grown, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)
    assert len(was["test"]) == 40
    # A fresh draw would put 24 of the 40 into train. Between train and test lies val, so only
    # images near a boundary move, and only by one split.
    assert len(set(now["test"]) & set(was["train"])) == 0
    assert len(set(now["train"]) & set(was["test"])) == 0
    assert len(set(now["test"]) & set(was["test"])) >= 30


def test_nested_folders_endings_in_capitals_and_hidden_files(tmp_path):
    write_photos(tmp_path, FEW)
    (tmp_path / "red/2024/may").mkdir(parents=True)
    (tmp_path / "red/2024/may/A.JPG").write_bytes(photo("red", 9, image_format="JPEG"))
    (tmp_path / "red/.thumbnails").mkdir()
    for ignored in ("red/notes.txt", "red/._000.png", "red/.thumbnails/000.png"):
        (tmp_path / ignored).write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    dataset = load_dataset(str(tmp_path))
    found = {
        name
        for examples in dataset.splits.values()
        for name in names(examples)
        if name.startswith("red")
    }
    assert found == {"red/000.png", "red/001.png", "red/002.png", "red/2024/may/A.JPG"}


def test_a_missing_folder_is_answered_with_the_layout(tmp_path):
    root = tmp_path / "absent"
    refused(
        root,
        f"data folder {root} does not exist; expected {root}/<class>/*.jpg or"
        f" {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg",
    )


@pytest.mark.parametrize(
    ("colours", "found"), [(["red"], "1 class folder (red)"), ([], "0 class folders (none)")]
)
def test_one_class_is_no_classification(tmp_path, colours, found):
    write_photos(tmp_path, dict.fromkeys(colours, 3))
    refused(
        tmp_path, f"{tmp_path} has {found}; a classifier needs 2 or more, one folder for each class"
    )


def test_an_empty_class_is_named(tmp_path):
    write_photos(tmp_path, {"red": 3, "green": 0, "blue": 3})
    refused(
        tmp_path,
        f"folder:{tmp_path}: split train has no images of green; looked for {LISTED}. 6 images"
        " used; 1 not read: 1 empty",
    )


def test_a_class_too_small_to_split_is_named_with_its_count(tmp_path):
    write_photos(tmp_path, {"red": 3, "blue": 2})
    refused(
        tmp_path,
        f"{tmp_path}: blue has 2; 3 images or more of each class are needed for train, val, test",
    )


def test_a_class_only_in_val_is_named(tmp_path):
    write_photos(tmp_path / "train", FEW)
    write_photos(tmp_path / "val", {"red": 1, "blue": 1, "green": 1})
    refused(
        tmp_path,
        f"{tmp_path / 'val'} has classes that the training data has not: green; known: blue, red."
        " To leave this folder out: --split train=train",
    )


def test_a_class_missing_in_val_is_named(tmp_path):
    write_photos(tmp_path / "train", FEW)
    write_photos(tmp_path / "val", {"red": 1})
    refused(tmp_path, f"folder:{tmp_path}: split val has no images of blue; looked for {LISTED}")


def test_splits_without_train_are_not_taken_for_classes(tmp_path):
    for split in ("val", "test"):
        write_photos(tmp_path / split, FEW)
    refused(tmp_path, f"{tmp_path} has val and test but no train folder to train on")

    judged = load_dataset(str(tmp_path), to_train=False)
    assert (judged.labels, judged.held_out, counts(judged)) == (
        ("blue", "red"),
        "test",
        {"val": FEW, "test": FEW},
    )


def test_an_unknown_kind_of_source_is_answered_with_the_valid_ones():
    valid = "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a bare path"
    refused("zip:photos.zip", f"source zip:photos.zip: no kind 'zip'; valid: {valid}")


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "a:b", FEW)
    assert load_dataset("a:b").labels == ("blue", "red")


def test_unreadable_images_are_left_out_with_the_reason(tmp_path):
    write_photos(tmp_path / "train", {"red": 20, "blue": 20})
    write_photos(tmp_path / "val", FEW)
    (tmp_path / "train/red/cut.png").write_bytes(photo("red", 0)[:100])
    (tmp_path / "val/blue/mp4.png").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    found = make_index(load_dataset(str(tmp_path)), SPEC, most=0.05)
    bad = found.unreadable

    assert counts(found.dataset) == {"train": {"blue": 20, "red": 20}, "val": FEW}
    assert sorted(bad) == ["train/red/cut.png", "val/blue/mp4.png"]
    assert "which is no image" in bad["val/blue/mp4.png"]
    assert "ends in the middle of a structure: send the complete file" in bad["train/red/cut.png"]


def test_more_than_one_unreadable_image_in_twenty_is_refused(tmp_path):
    write_photos(tmp_path, {"red": 10, "blue": 8})
    (tmp_path / "blue/0.png").write_bytes(b"junk")
    assert len(make_index(load_dataset(str(write_more(tmp_path))), SPEC, most=0.05).unreadable) == 1

    (tmp_path / "blue/1.png").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=re.escape(f"folder:{tmp_path}: 2 of 21 images cannot be read, such as blue/"),
    ):
        make_index(load_dataset(str(tmp_path)), SPEC, most=0.05)


def write_more(folder):
    """One image more, so that there are twenty."""
    (folder / "blue/more.png").write_bytes(photo("blue", 99))
    return folder


def test_a_class_that_has_only_unreadable_images_is_named(tmp_path):
    write_photos(tmp_path / "train", {"red": 30, "blue": 30})
    write_photos(tmp_path / "val", {"red": 2, "blue": 0})
    (tmp_path / "val/blue/0.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="split val has no images of blue"):
        make_index(load_dataset(str(tmp_path)), SPEC, most=0.05)


def test_what_is_readable_keeps_its_order():
    good = [Example(name=str(index), label=0, encoded=photo("red", index)) for index in range(3)]
    bad = Example(name="bad", label=0, encoded=b"junk")
    dataset = Dataset("memory", ("red",), {"train": (good[2], bad, good[0], good[1])})
    found = make_index(dataset, SPEC, most=0.25)
    assert found.dataset.splits["train"] == (good[2], good[0], good[1])
    assert list(found.unreadable) == ["bad"]


def test_a_file_that_went_away_is_named(tmp_path):
    first, *_ = load_dataset(str(write_photos(tmp_path, FEW))).splits["train"]
    first.path.unlink()
    expected = f"{first.path}: there is no such file or folder; check the path"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        first.read()


def test_the_fingerprint_is_of_bytes_labels_and_splits(tmp_path):
    def made(name, *, moved=False, changed=False):
        root = tmp_path / name
        write_photos(root / "train", {"red": 4, "blue": 4})
        write_photos(root / "val", FEW)
        if moved:
            (root / "train/red/000.png").rename(root / "train/blue/a.png")
        if changed:
            (root / "val/red/000.png").write_bytes(photo("red", 77))
        return make_index(load_dataset(str(root)), SPEC, most=0.0).fingerprint()

    one = made("one")
    assert one.splits == {"train": {"blue": 4, "red": 4}, "val": {"blue": 3, "red": 3}}
    assert made("again").sha256 == one.sha256
    assert made("changed", changed=True).sha256 != one.sha256
    assert made("moved", moved=True).sha256 != one.sha256


def test_digits_are_ten_classes_of_scans_cut_by_the_seed():
    digits = load_dataset("digits", seed=0)
    assert digits.labels == tuple("0123456789")
    assert {split: len(examples) for split, examples in digits.splits.items()} == {
        "train": 1078,
        "val": 360,
        "test": 359,
    }
    # 174 to 183 scans of each digit, so one image is less than 0.6 % of a class.
    assert [
        counts(digits)["train"][digit]
        / sum(counts(digits)[split][digit] for split in digits.splits)
        for digit in digits.labels
    ] == pytest.approx([0.6] * 10, abs=0.006)
    assert make_index(digits, SPEC, most=0.0).unreadable == {}
    assert load_dataset("digits", seed=1).splits["test"] != digits.splits["test"]
