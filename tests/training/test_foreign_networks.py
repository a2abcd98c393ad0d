"""A transformer of timm on its whole way: no maps, and every place that needs them says so."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

import loupe
from models.errors import OutputUnavailable
from models.runtime.session import open_model
from service.engine.classifier import Classifier
from service.http.options import read_options
from tests.training.photos import COLOURS, write_photos
from tests.training.small_runs import TINY
from training.data.source import load_dataset
from training.export.export import export
from training.fit.loop import train


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    photos = write_photos(folder / "photos", dict.fromkeys(COLOURS, 8))
    config = dataclasses.replace(
        TINY, network="timm:test_vit", image_size=0, resize_size=0, probe_epochs=1
    )
    run = train(config, load_dataset(str(photos)), folder / "run")
    return photos, folder / "package", export(run, folder / "package")


def test_the_package_has_an_embedding_and_no_maps(package):
    _, folder, manifest = package
    assert [output.name for output in manifest.outputs] == ["logits", "probabilities", "embedding"]
    assert manifest.architecture.network == "timm:test_vit"
    assert (manifest.preprocess.crop, manifest.preprocess.filter) == ((160, 160), "bicubic")
    assert manifest.architecture.mean == (0.5, 0.5, 0.5)
    model = open_model(folder)
    pixels_NHWC = np.zeros((3, 160, 160, 3), dtype=np.uint8)
    assert model.run(pixels_NHWC, ["embedding"])["embedding"].shape == (3, 64)


def test_a_request_for_a_heat_map_is_answered_with_why_not(package):
    classifier = Classifier.open(package[1])
    message = r"has no output cam, only logits, probabilities, embedding: its network gives none"
    with pytest.raises(OutputUnavailable, match=message):
        read_options({"explain": "grid"}, classifier)
    assert read_options({"embedding": "true"}, classifier).embedding


def test_explain_compares_what_needs_no_maps(package, tmp_path):
    photos, folder, _ = package
    photo = next((photos / "val").rglob("*.*"), None) or next(photos.rglob("*.*"))
    done = CliRunner().invoke(
        loupe.cli,
        ["inspect", "explain", str(folder), str(photo), "--out", str(tmp_path / "maps.png")],
    )
    assert done.exit_code == 0, done.output
    assert "occlusion" in done.output
    assert "grad-cam" not in done.output.lower()
