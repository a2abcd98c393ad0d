"""What is added to the data of a run, or taken away, after it was begun: only what the run names
matters to it.
"""

import shutil

import pytest
from click.testing import CliRunner

from models.errors import DataError
from tests.training.photos import COLOURS, photo, write_photos
from tests.training.small_runs import TINY
from training.commands import export
from training.data.index import IndexedImage, make_index
from training.data.source import list_again, list_source, load_dataset, tell_added
from training.fit.loop import preprocess_spec

SPEC = preprocess_spec(TINY)


def new_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo("red", 900))


ADDITIONS = {
    "class in one split": lambda root: new_file(root / "val/purple/0.png"),
    "empty class": lambda root: (root / "train/purple").mkdir(),
    "second folder for a split": lambda root: (root / "Validation/blue").mkdir(parents=True),
    "folder beside": lambda root: new_file(root / "other/x/0.png"),
    "splits inside classes": lambda root: [
        new_file(root / f"train/{colour}/{split}/0.png")
        for colour in COLOURS
        for split in ("train", "test")
    ],
}


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_additions_to_a_folder_change_nothing(tmp_path, add):
    for split, seed in (("train", 0), ("val", 100)):
        write_photos(tmp_path / split, dict.fromkeys(COLOURS, 2), first_seed=seed)
    dataset = load_dataset(str(tmp_path))
    begun = make_index(dataset, SPEC, most=0.0)
    add(tmp_path)
    found = make_index(
        list_again(dataset.source, begun.entries, dataset.labels),
        SPEC,
        most=0.0,
        begun=begun.entries,
    )
    assert (found.broken, found.fingerprint()) == ({}, begun.fingerprint())


def test_a_folder_called_as_a_split_beside_the_classes_changes_nothing(tmp_path):
    dataset = load_dataset(str(write_photos(tmp_path, dict.fromkeys(COLOURS, 5))))
    begun = make_index(dataset, SPEC, most=0.0)
    new_file(tmp_path / "test/blue/0.png")
    assert (
        make_index(
            list_again(dataset.source, begun.entries, dataset.labels),
            SPEC,
            most=0.0,
            begun=begun.entries,
        ).broken
        == {}
    )


def test_rows_that_are_added_or_changed_in_a_table(tmp_path):
    write_photos(tmp_path, dict.fromkeys(COLOURS, 5))
    table = tmp_path / "table.csv"
    rows = [f"{colour}/{index:03d}.png,{colour}" for colour in COLOURS for index in range(5)]
    table.write_text("\n".join(["path,label", *rows]))
    dataset = load_dataset(f"csv:{table}")
    begun = make_index(dataset, SPEC, most=0.0)
    table.write_text(
        "\n".join(
            ["path,label", "gone.png,red", "blue/000.png,purple", *rows, "red/000.png,", "one"]
        )
    )
    again = list_again(dataset.source, begun.entries, dataset.labels)
    assert make_index(again, SPEC, most=0.0, begun=begun.entries).broken == {}
    table.write_text("\n".join(["path,label", "blue/000.png,purple", *rows[2:]]))
    again = list_again(dataset.source, begun.entries, dataset.labels)
    told = make_index(again, SPEC, most=0.5, begun=begun.entries).broken
    assert {name: reason for (_, name), reason in told.items()} == {
        "blue/000.png": "has another class or other content than it had",
        "blue/001.png": "is no longer there",
    }
    with pytest.raises(
        DataError,
        match=r"2 of the 15 images of the run are gone, changed or unreadable, such as blue/00",
    ):
        make_index(again, SPEC, most=0.1, begun=begun.entries)


def test_what_was_left_out_from_the_start_is_not_told_as_added(tmp_path, capsys):
    for split in ("train", "val"):
        write_photos(tmp_path / split, dict.fromkeys(COLOURS, 1))
    new_file(tmp_path / "test/0.png")
    dataset = load_dataset(str(tmp_path))
    entries = [
        IndexedImage(split, e.label, e.name, "")
        for split, examples in dataset.splits.items()
        for e in examples
    ]
    unused = [entry.name for entry in list_source(str(tmp_path)).unused]
    tell_added(entries, list_again(dataset.source, entries, dataset.labels), unused)
    assert capsys.readouterr().err == ""
    new_file(tmp_path / "val/purple/0.png")
    tell_added(entries, list_again(dataset.source, entries, dataset.labels), unused)
    assert (
        "added since the run began, and ignored: 1, such as val/purple/0.png"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_export_goes_on_when_folders_were_added(tmp_path, exported):
    try:
        (exported.photos / "empty").mkdir()
        new_file(exported.photos / "test/blue/0.png")
        done = CliRunner().invoke(
            export, [str(exported.run.path), "--out", str(tmp_path / "package"), "--golden", "made"]
        )
    finally:
        shutil.rmtree(exported.photos / "empty")
        shutil.rmtree(exported.photos / "test")
    assert done.exit_code == 0, done.output
    assert "added since the run began, and ignored: 1, such as test/blue/0.png" in done.stderr
