"""`loupe evaluate`: any package on any labelled images, held out from training where that can be
known.
"""

import json
import re

import pytest
from click.testing import CliRunner

from models.errors import DataError, PackageTampered
from tests.training.colours import colour_package
from tests.training.photos import COLOURS, photo, write_photos
from training.evaluate.commands import evaluate
from training.evaluate.judge import judge

SWAPPED = ("green", "blue", "red")


@pytest.fixture
def package(tmp_path):
    return colour_package(tmp_path / "package")


def test_the_package_of_a_run_scores_what_its_manifest_says(exported, tmp_path):
    """The split of a folder in one piece is drawn with the run's seed, so that no training image
    judges.
    """
    figures = judge(exported.package, f"folder:{exported.photos}", tmp_path)
    assert figures == exported.manifest.evaluation
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["evaluation"] == figures.model_dump(mode="json")
    assert (tmp_path / "report.html").is_file()


def test_a_wrong_package_scores_what_it_deserves(tmp_path):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))
    figures = judge(
        colour_package(tmp_path / "package", answers=SWAPPED), str(photos), tmp_path / "out/deep"
    )
    top1 = figures.metrics["top1"]
    assert (figures.split, figures.count) == ("test", 6)
    assert top1.value == pytest.approx(1 / 3)
    assert top1.low < 1 / 3 < top1.high


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_without_train_can_judge(tmp_path, package, split):
    write_photos(tmp_path / "photos" / split, dict.fromkeys(COLOURS, 2))
    figures = judge(package, str(tmp_path / "photos"), tmp_path / "out")
    assert (figures.split, figures.count, figures.metrics["top1"].value) == (split, 6, 1.0)


def test_images_of_other_splits_are_not_even_read(tmp_path, package):
    write_photos(tmp_path / "photos/train", dict.fromkeys(COLOURS, 1))
    write_photos(tmp_path / "photos/val", dict.fromkeys(COLOURS, 2))
    for index in range(20):
        (tmp_path / f"photos/train/red/bad-{index}.png").write_bytes(b"junk")
    assert judge(package, str(tmp_path / "photos"), tmp_path / "out").count == 6


def test_an_unreadable_image_is_left_out_and_named(tmp_path, package, capsys):
    write_photos(tmp_path / "photos/test", dict.fromkeys(COLOURS, 10))
    (tmp_path / "photos/test/red/[/x].png").parent.mkdir()
    (tmp_path / "photos/test/red/[/x].png").write_bytes(b"junk")
    assert judge(package, str(tmp_path / "photos"), tmp_path / "out").count == 30
    assert "left out test/red/[/x].png: received 4 bytes" in capsys.readouterr().err


def test_other_classes_are_refused_before_any_work(tmp_path, package):
    photos = write_photos(tmp_path / "photos", {"blue": 3, "red": 3})
    (photos / "red").rename(photos / "crimson")
    expected = (
        f"folder:{photos} has classes that {package} does not know: crimson; it answers with blue,"
        " green, red. Rename their folders or labels, or leave them out"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        judge(package, str(photos), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_of_the_classes_can_be_judged_and_the_others_are_named(tmp_path, package, capsys):
    """Without `blue`, the other classes have other places in the source than in the package."""
    write_photos(tmp_path / "photos" / "test", {"green": 3, "red": 4})
    figures = judge(package, str(tmp_path / "photos"), tmp_path / "out")
    assert (figures.count, figures.metrics["top1"].value) == (7, 1.0)
    told = " ".join(capsys.readouterr().err.split())
    assert (
        f"not judged: 1 of 3 classes have no images in folder:{tmp_path / 'photos'}: blue" in told
    )
    assert (tmp_path / "out" / "report.html").is_file()


def test_classes_go_by_name_whatever_their_order(tmp_path):
    package = colour_package(
        tmp_path / "package", labels=(labels := ("red", "blue", "green")), answers=labels
    )
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))
    assert judge(package, str(photos), tmp_path / "out").metrics["top1"].value == 1.0


def test_a_report_that_cannot_be_written_is_refused_before_any_work(tmp_path, package):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 3))
    with pytest.raises(
        DataError,
        match=(
            f"^cannot make report folder {re.escape(str(package / 'manifest.json/out'))}: a part of"
            " this path is a file"
        ),
    ):
        judge(package, str(photos), package / "manifest.json/out")


def test_a_tampered_package_is_not_judged(tmp_path, package):
    (package / "report.html").write_text("changed")
    with pytest.raises(PackageTampered):
        judge(package, "digits", tmp_path / "out")


def test_the_command_prints_the_accuracy_with_its_interval(tmp_path, package):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))
    (photos / "red/more.png").write_bytes(photo("red", 99))
    arguments = [str(package), "--data", str(photos), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert done.stdout.splitlines() == [
        f"accuracy 100.0% (61.0% to 100.0%) on 6 test images of folder:{photos}",
        "6 test images are few: 90% of them right may mean anything from 44% to 97%",
        f"report {tmp_path / 'out/report.html'}",
    ]


@pytest.mark.parametrize("cut", [False, True])
def test_a_source_is_judged_whole_on_request(tmp_path, package, cut):
    """In one piece or in splits; a class with two images could not be cut into three."""
    for split in ("train", "val") if cut else (".",):
        write_photos(tmp_path / "photos" / split, {"blue": 4, "green": 3, "red": 2})
    arguments = [
        str(package),
        "--data",
        str(tmp_path / "photos"),
        "--out",
        str(tmp_path / "out"),
        "--split",
        "all",
    ]
    done = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert f" on {18 if cut else 9} all images of " in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["evaluation"]["split"], report["evaluation"]["count"]) == (
        "all",
        18 if cut else 9,
    )


def test_all_images_of_the_training_data_come_with_a_warning(exported, tmp_path, capsys):
    figures = judge(exported.package, str(exported.photos), tmp_path, whole=True)
    assert figures.count == 90
    assert (
        "trained this model: on all of its images the figures are better than the model is"
        in capsys.readouterr().err
    )


def test_the_report_of_a_stored_version_is_titled_with_its_name(tmp_path):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 3))
    judge(colour_package(tmp_path / "insects/4"), str(photos), tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text())["title"] == "insects 4"


def test_what_was_not_judged_is_named_in_the_report(tmp_path, exported):
    folder = write_photos(tmp_path / "photos", {"blue": 3, "red": 3, "green": 3})
    (folder / "blue/notes.txt").write_text("x")
    (folder / "loose.png").write_bytes((folder / "blue/000.png").read_bytes())
    done = CliRunner().invoke(
        evaluate,
        [
            str(exported.package),
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "out"),
            "--split",
            "all",
        ],
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["unused"] == {
        ".txt": ["blue/notes.txt"],
        "outside of any class folder": ["loose.png"],
    }
    assert report["unreadable"] == {}
    assert "2 not read" in done.stderr
    assert f"see {tmp_path / 'out/report.json'}" in done.stderr


def test_where_only_judging_is_asked_a_split_may_lack_classes(tmp_path, package, capsys):
    """Training needs every class in every split. Judging takes what there is, even one class."""
    write_photos(tmp_path / "photos/train", dict.fromkeys(COLOURS, 3))
    write_photos(tmp_path / "photos/val", dict.fromkeys(COLOURS, 3))
    write_photos(tmp_path / "photos/test", {"red": 4})
    assert judge(package, str(tmp_path / "photos"), tmp_path / "out").count == 4
    write_photos(tmp_path / "one/test", {"red": 3})
    assert judge(package, str(tmp_path / "one"), tmp_path / "out").count == 3
