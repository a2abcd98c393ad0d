"""`loupe inspect features`, `filters` and `explain` on a package, a run and a network."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from models.inspection.feature_maps import session_with_outputs, weights_of
from models.pixels.preprocess import to_pixels
from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.evidence import explain, sentences
from training.inside.subject import open_subject


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(inspect, [str(argument) for argument in arguments])


def photo(exported: Exported) -> Path:
    return next((exported.photos / "red").glob("[0-9]*.png"))


def test_a_map_is_what_the_whole_graph_computes_there(exported: Exported, tmp_path: Path) -> None:
    """The last map, averaged, is the embedding that the package gives."""
    result = run(
        "features", exported.package, photo(exported), "--layer", "relu_16", "--json",
        "--out", tmp_path / "maps.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(_json(result))
    pixels_HWC = to_pixels(photo(exported).read_bytes(), exported.manifest.preprocess)
    session = ort.InferenceSession(
        exported.package / "model.onnx", providers=["CPUExecutionProvider"]
    )
    [embedding] = session.run(["embedding"], {"image": pixels_HWC[np.newaxis]})
    means = [channel["mean"] for channel in document["channels"]]
    assert document["shape"] == [512, 1, 1]
    assert np.allclose(means, embedding[0], atol=1e-4)
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.width >= 620


def _json(result: Result) -> str:
    return "\n".join(line for line in result.stdout.splitlines() if not line.startswith("wrote"))


def test_an_early_layer_answers_without_running_the_rest(exported: Exported) -> None:
    model = (exported.package / "model.onnx").read_bytes()
    session = session_with_outputs(model, ["relu"])
    assert [output.name for output in session.get_outputs()] == ["relu"]
    assert weights_of(model, "getitem").shape == (64, 3, 7, 7)


def test_filters_are_the_weights_of_the_graph(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "filters.html"
    result = run("filters", exported.package, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads(_json(result))
    assert document["layer"] == "features.conv1"
    assert np.shape(document["weights"]) == (64, 3, 7, 7)
    text = out.read_text(encoding="utf-8")
    assert "Filters of features.conv1" in text
    assert "data:image/png;base64," in text


def test_an_explanation_is_measured_against_a_random_map(
    exported: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "explain.png"
    result = run("explain", exported.package, photo(exported), "--json", "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads(_json(result))
    assert document["label"] in exported.manifest.labels
    methods = [item["method"] for item in document["methods"]]
    assert methods == ["class activation", "occlusion", "integrated gradients"]
    assert all(0.0 <= item["deletion"] <= 1.0 for item in document["methods"])
    # At 32 pixels the last map has one cell, which agrees with nothing.
    assert np.shape(document["methods"][0]["heat"]) == (1, 1)
    [pair] = document["agreement"]
    assert pair["methods"] == ["occlusion", "integrated gradients"]
    assert -1.0 <= pair["rank_correlation"] <= 1.0
    assert Image.open(io.BytesIO(out.read_bytes())).format == "PNG"


def test_what_cannot_be_shown_is_explained(exported: Exported, tmp_path: Path) -> None:
    package, image = exported.package, photo(exported)
    cases = [
        (("features", package, image, "--layer", "conv9"), "no layer 'conv9'. There are: "),
        (("features", package, image, "--layer", "head.linear"), "gives 3 values and no map"),
        (("filters", package, "--layer", "relu"), "has no filters; the first convolution is feat"),
        (("explain", package, image, "--class", "puce"), "no class 'puce'; the classes are "),
    ]
    for arguments, message in cases:
        result = run(*arguments)
        assert result.exit_code, arguments
        assert message in str(result.exception), result.exception
    (tmp_path / "note.txt").write_text("no photo")
    result = run("features", package, tmp_path / "note.txt")
    assert f"{tmp_path / 'note.txt'}: received 8 bytes" in str(result.exception)
    assert "which is not an image" in str(result.exception)


def test_a_picture_of_another_kind_is_refused_before_any_work(exported: Exported) -> None:
    result = run("filters", exported.package, "--out", "a.gif")
    assert result.exit_code == 2
    assert "a.gif is neither .png nor .html; choose one" in result.output


@pytest.mark.slow
def test_a_run_and_a_network_are_exported_and_shown(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    assert run("features", exported.run.path, photo(exported), "--out", out).exit_code == 0
    result = run("filters", "lenet5", "--out", tmp_path / "filters.png", "--json")
    assert np.shape(json.loads(_json(result))["weights"]) == (20, 3, 5, 5)


def test_a_map_of_a_single_cell_is_said_to_tell_nothing(exported: Exported) -> None:
    found = explain(open_subject(str(exported.package)), photo(exported), None)
    single = replace(found.found[0], method="class activation", heat_hw=np.ones((1, 1), np.float32))
    said = sentences(replace(found, found=(single, *found.found[1:])))
    assert "The map of class activation has a single cell, so it says nothing about places." in said
    coarse = replace(single, heat_hw=np.eye(2, dtype=np.float32))
    assert "single cell" not in " ".join(sentences(replace(found, found=(coarse,))))
