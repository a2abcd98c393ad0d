"""`loupe import` as people call it, and what the rest of Loupe makes of its packages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

import loupe
from models.store.store import Store
from service.engine.classifier import Classifier
from tests.training.importing.foreign_models import convolutional, saved, write_labels
from tests.training.photos import COLOURS, write_photos
from training.edge.build import build
from training.evaluate.judge import judge

LABELS = tuple(COLOURS)


def colour_network(folder: Path) -> Path:
    """A network that knows the colours of the test photos by heart, for BGR pixels of -1 to 1."""
    model = convolutional(classes=len(LABELS))
    kernel = np.zeros((5, 3, 3, 3), dtype=np.float32)
    for channel in range(3):
        kernel[channel, channel, 1, 1], kernel[channel + 2, channel, 1, 1] = 1.0, -1.0
    colours = np.array([COLOURS[label] for label in LABELS], dtype=np.float32)[:, ::-1]
    centred = colours / 127.5 - 1.0
    weight = np.zeros((len(LABELS), 5), dtype=np.float32)
    weight[:, :3] = 20.0 * centred
    values = {
        "kernel": kernel,
        "bias": np.full(5, 2.0, dtype=np.float32),
        "weight": weight,
        "shift": -weight.sum(axis=1) * 2.0 - 10.0 * (centred**2).sum(axis=1),
    }
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name)
        )
    return saved(model, folder / "colours.onnx")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A network, its labels, and labelled photos."""
    folder = tmp_path_factory.mktemp("place")
    colour_network(folder)
    write_labels(folder, LABELS)
    write_photos(folder / "photos", dict.fromkeys(LABELS, 6))
    return folder


def run(*words: object) -> int:
    return loupe.run(["import", *map(str, words)])


def given(place: Path, out: Path) -> list[object]:
    declared = ("--preprocess", "half", "--preprocess", "channels=bgr")
    return [place / "colours.onnx", "--labels", place / "labels.txt", *declared, "--out", out]


@pytest.fixture(scope="module")
def judged(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "package"
    assert run(*given(place, out), "--data", place / "photos") == 0
    return out


@pytest.fixture(scope="module")
def unjudged(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unjudged") / "package"
    assert run(*given(place, out), "--images", place / "photos") == 0
    return out


def test_labelled_images_give_accuracy_with_its_interval(place, tmp_path, capsys):
    assert run(*given(place, tmp_path / "package"), "--data", place / "photos") == 0
    said = capsys.readouterr().out
    assert re.search(r"accuracy   100\.00% \(\d\d\.\d\d% to 100\.00%\) on \d+ images of", said)
    assert "pixels     BGR of 0 to 1, less 0.5, over 0.5" in said
    assert "heat maps  8x8" in said
    assert "loupe publish" in said
    report = json.loads((tmp_path / "package" / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["metrics"]["top1"]["value"] == 1.0
    page = (tmp_path / "package" / "report.html").read_text(encoding="utf-8")
    assert "between ONNX Runtime and the package" in page


def test_photos_without_labels_prove_and_do_not_judge(place, tmp_path, capsys):
    assert run(*given(place, tmp_path / "package"), "--images", place / "photos") == 0
    said = capsys.readouterr().out
    assert "accuracy   not evaluated" in said
    assert re.search(r"proof      at most \d\.\de-\d\d from ONNX Runtime on \d+ images", said)


def test_an_unjudged_package_has_what_drift_is_measured_against(unjudged):
    manifest = Classifier.open(unjudged).manifest
    assert manifest.evaluation is None
    assert manifest.reference is not None
    assert manifest.reference.count == 6 * len(LABELS)


def test_the_preprocessing_that_nobody_remembers_is_found(place, capsys):
    """Only with BGR is the network always right, whatever the scale."""
    words = [place / "colours.onnx", "--labels", place / "labels.txt"]
    assert run(*words, "--data", place / "photos", "--find-preprocess") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("right on")
    assert re.search("caffe|channels=bgr", said[-1])
    right = [line for line in said if line.startswith("100.00%")]
    assert right
    assert all(re.search("caffe|channels=bgr", line) for line in right)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "photos", "--data", "photos"], "--images and --data exclude each other"),
        (["--find-preprocess"], "--find-preprocess needs --data"),
        ([], "Missing option '--out'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, capsys, words, message, monkeypatch):
    monkeypatch.chdir(place)
    assert run(place / "colours.onnx", *words) == 2
    assert message in capsys.readouterr().err


def test_data_of_other_classes_is_refused_by_their_names(place, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", {LABELS[0]: 2, LABELS[1]: 2})
    (photos / LABELS[0]).rename(photos / "mauve")
    assert run(*given(place, tmp_path / "package"), "--data", photos) == 1
    assert "has classes that colours.onnx does not know: mauve" in capsys.readouterr().err


def test_a_folder_without_images_is_refused(place, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(*given(place, tmp_path / "package"), "--images", tmp_path / "empty") == 1
    assert "holds no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "package").exists()


def test_the_store_says_that_a_version_is_not_evaluated(unjudged, tmp_path, capsys):
    Store(tmp_path / "store").publish(unjudged, name="colours")
    assert loupe.run(["models", "show", "colours", "--store", str(tmp_path / "store")]) == 0
    assert "not evaluated" in capsys.readouterr().out


def test_an_imported_package_is_judged_later_like_any_other(unjudged, place, tmp_path):
    figures = judge(unjudged, str(place / "photos"), tmp_path / "report", whole=True)
    assert figures.metrics["top1"].value == 1.0


def test_an_imported_package_classifies_and_explains(judged, place):
    photo = next((place / "photos").rglob(f"{LABELS[0]}/*.png")).read_bytes()
    classifier = Classifier.open(judged)
    [answer] = classifier.classify([photo])
    assert answer.predictions[0].label == LABELS[0]
    pixels = classifier.decode(photo)[np.newaxis]
    assert classifier.model.run(pixels, ("cam",))["cam"].shape == (1, len(LABELS), 8, 8)


@pytest.mark.parametrize("package", ["judged", "unjudged"])
def test_an_imported_package_is_scored(package, place, tmp_path, capsys, request):
    folder = request.getfixturevalue(package)
    words = ["score", place / "photos", "--model", folder, "--out", tmp_path / "scores.jsonl"]
    assert loupe.run([str(word) for word in words]) == 0
    assert "scored by" in capsys.readouterr().out


def test_without_images_drift_is_said_not_to_be_measured(place, tmp_path, capsys):
    assert run(*given(place, tmp_path / "package")) == 0
    assert "that were made; --images FOLDER takes photos" in capsys.readouterr().out
    words = ["score", place / "photos", "--model", tmp_path / "package"]
    words += ["--out", tmp_path / "scores.jsonl"]
    assert loupe.run([str(word) for word in words]) == 0
    assert "not measured: the model was imported without images" in capsys.readouterr().out


def test_a_bundle_of_an_unjudged_package_says_so_and_passes_its_own_test(unjudged, tmp_path):
    import zipfile

    built = build(unjudged, tmp_path / "bundle.zip", targets=("python",))
    with zipfile.ZipFile(built.path) as bundle:
        name = next(name for name in bundle.namelist() if name.endswith("README.md"))
        assert "Imported and not evaluated" in bundle.read(name).decode()
