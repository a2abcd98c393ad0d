"""Retraining promotes what is not worse on the same images, and nothing else; whatever happens, the new version is kept and the old one serves."""

import re

import pytest
from click.testing import CliRunner

from models.errors import DataError, PackageTampered, StoreError
from models.manifest import PreprocessSpec, read_manifest
from models.store import Store
from tests.training.colours import colour_package
from tests.training.photos import COLOURS, photo, write_photos
from tests.training.runs import TINY
from training import retrain as retraining
from training.commands import retrain as command
from training.retrain import retrain

RIGHT, SWAPPED, ALL_WRONG = ("blue", "green", "red"), ("green", "blue", "red"), ("green", "red", "blue")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))


@pytest.fixture
def trained(monkeypatch):
    """Sets the package that "training" makes: a run costs seconds, and what it learns cannot be chosen."""

    def set_package(**what):
        def export(run, out):
            return read_manifest(colour_package(out, **what))

        monkeypatch.setattr(retraining, "train", lambda config, dataset, out: None)
        monkeypatch.setattr(retraining, "export", export)

    return set_package


def published(store, tmp_path, **what):
    return store.publish(colour_package(tmp_path / "before", **what), name="colours")


def retrained(store, photos, tmp_path):
    return retrain(TINY, str(photos), name="colours", store=store, artifacts=tmp_path / "artifacts")


def test_the_first_version_of_a_real_run_goes_into_production(store, tmp_path):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))
    verdict = retrained(store, photos, tmp_path)

    assert store.aliases("colours") == {"candidate": 1, "production": 1}
    assert (verdict.promoted, verdict.reason, verdict.production, verdict.production_accuracy) == (True, "there was none in production", None, None)
    assert verdict.ref == store.resolve("colours")
    manifest = read_manifest(verdict.ref.path)
    assert verdict.accuracy == manifest.evaluation.metrics["top1"].value
    assert manifest.lineage.run.startswith("colours-")
    assert [entry.action for entry in store.history("colours")] == ["publish"]
    assert store.history("colours")[0].why == f"retrain on {photos}"

    # The same again, for real: the same seed gives the same model, which is not worse than itself.
    again = retrained(store, photos, tmp_path)
    assert (again.promoted, again.production, again.production_accuracy) == (True, verdict.ref, verdict.accuracy)
    assert store.aliases("colours") == {"candidate": 2, "production": 2}


def test_a_worse_version_is_published_but_not_promoted(store, photos, tmp_path, trained):
    before = published(store, tmp_path)
    trained(answers=SWAPPED)
    verdict = retrained(store, photos, tmp_path)

    assert store.aliases("colours") == {"candidate": 2, "production": 1}
    assert (verdict.promoted, verdict.production, verdict.ref.version) == (False, before, 2)
    assert (verdict.accuracy, verdict.production_accuracy) == (pytest.approx(1 / 3), 1.0)
    assert verdict.reason == "accuracy 33.33% is lower than the 100.00% of version 1 on the same 6 images"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (SWAPPED, RIGHT, "accuracy 100.00% is not lower than the 33.33% of version 1 on the same 6 images"),
        (SWAPPED, SWAPPED, "accuracy 33.33% is not lower than the 33.33% of version 1 on the same 6 images"),
    ],
)
def test_a_version_that_is_not_worse_is_promoted(store, photos, tmp_path, trained, old, new, reason):
    published(store, tmp_path, answers=old)
    trained(answers=new)
    verdict = retrained(store, photos, tmp_path)

    assert (verdict.promoted, verdict.reason) == (True, reason)
    assert store.resolve("colours") == verdict.ref
    assert store.aliases("colours") == {"candidate": 2, "production": 2}
    assert [(entry.action, entry.why) for entry in store.history("colours")][-1] == ("promote", reason)


def test_a_version_with_other_classes_is_not_promoted(store, photos, tmp_path, trained):
    published(store, tmp_path, labels=("blue", "green", "pink"))
    trained(answers=RIGHT)
    verdict = retrained(store, photos, tmp_path)

    assert store.aliases("colours") == {"candidate": 2, "production": 1}
    assert (verdict.promoted, verdict.production_accuracy) == (False, None)
    assert verdict.reason == "version 1 has other classes, so they cannot be compared"


def test_both_versions_are_judged_on_the_images_that_both_can_read(store, tmp_path, trained):
    """Production takes PNG alone; that the new version is wrong on the JPEG files, which it alone can read, must not count against it."""
    photos = tmp_path / "photos"
    for split in ("train", "val", "test"):
        write_photos(photos / split, dict.fromkeys(COLOURS, 3))
    for index in range(4):
        (photos / f"test/blue/{index}.jpg").write_bytes(photo("red", index, image_format="JPEG"))
    (photos / "test/red/gone.jpg").write_bytes(b"junk")
    published(store, tmp_path, spec=PreprocessSpec(resize_size=8, crop=(8, 8), formats=("PNG",)))
    trained(answers=RIGHT)
    verdict = retrained(store, photos, tmp_path)
    assert verdict.reason == "accuracy 100.00% is not lower than the 100.00% of version 1 on the same 9 images"


def test_no_image_in_common_is_no_comparison(store, photos, tmp_path, trained):
    published(store, tmp_path, spec=PreprocessSpec(resize_size=8, crop=(8, 8), formats=("PNG", "WEBP")))
    trained(spec=PreprocessSpec(resize_size=8, crop=(8, 8), formats=("PNG", "JPEG")))
    for path in list(photos.rglob("*.png")):
        path.with_suffix(".jpg").write_bytes(photo(path.parent.name, 1, image_format="JPEG"))
        path.unlink()
    with pytest.raises(DataError, match="no images to judge on"):
        retrained(store, photos, tmp_path)
    assert store.aliases("colours") == {"candidate": 2, "production": 1}


def test_a_damaged_production_version_costs_neither_the_new_one_nor_its_place(store, photos, tmp_path, trained):
    before = published(store, tmp_path)
    (before.path / "report.html").write_text("changed")
    trained(answers=RIGHT)
    with pytest.raises(PackageTampered, match=r"report\.html"):
        retrained(store, photos, tmp_path)
    assert store.versions("colours") == [1, 2]
    assert store.aliases("colours") == {"candidate": 2, "production": 1}


def test_a_model_with_nothing_in_production_gets_the_new_version_there(store, photos, tmp_path, trained):
    before = published(store, tmp_path)
    trained(answers=ALL_WRONG)
    before.path.rename(tmp_path / "taken away")
    verdict = retrained(store, photos, tmp_path)
    assert (verdict.promoted, verdict.production) == (True, None)
    assert store.resolve("colours") == verdict.ref


def test_a_name_that_the_store_refuses_is_refused_before_training(store, photos, tmp_path):
    with pytest.raises(StoreError, match=r"model name '../colours' cannot be used"):
        retrain(TINY, str(photos), name="../colours", store=store, artifacts=tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()


def test_a_run_that_fails_leaves_production_as_it_was(store, photos, tmp_path, monkeypatch):
    published(store, tmp_path)

    def fail(config, dataset, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(retraining, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        retrained(store, photos, tmp_path)
    assert store.aliases("colours") == {"candidate": 1, "production": 1}


def test_the_command_says_what_it_did(store, photos, tmp_path, trained):
    published(store, tmp_path)
    trained(answers=SWAPPED)
    arguments = ["--name", "colours", "--data", str(photos), "--recipe", "digits", "--store", str(store.root), "--artifacts", str(tmp_path / "a")]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert re.fullmatch(
        r"colours version 2 published: .*/store/colours/2\n"
        r"not promoted: accuracy 33\.33% is lower than the 100\.00% of version 1 on the same 6 images\n",
        done.stdout,
    )
