"""`loupe inspect gradients`: gradients against what is known of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from models.pixels.preprocess import to_pixels
from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.flow.backward import Flow, flow_back
from training.inside.flow.picture import sentences
from training.inside.flow.training import history
from training.inside.flow.units import survey
from training.inside.subject import open_subject


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(inspect, ["gradients", *map(str, arguments)])


def photo(exported: Exported) -> Path:
    return next((exported.photos / "red").glob("[0-9]*.png"))


def answer(exported: Exported) -> float:
    """The probability of the second class, from the package as it is served."""
    session = onnxruntime.InferenceSession(exported.package / "model.onnx")
    pixels_HWC = to_pixels(photo(exported).read_bytes(), exported.manifest.preprocess)
    name = session.get_inputs()[0].name
    return float(session.run(["probabilities"], {name: pixels_HWC[np.newaxis]})[0][0, 1])


@pytest.fixture(scope="module")
def flow(exported: Exported) -> Flow:
    subject = open_subject(str(exported.package))
    return flow_back(subject, photo(exported), exported.manifest.labels[1])


def test_the_gradient_of_the_last_layer_is_the_error_of_the_answer(flow: Flow) -> None:
    """Of cross-entropy with respect to logits: the probabilities, less 1 at the label."""
    last = flow.layers[-1]
    assert last.layer == "head.linear"
    wrong = 1.0 - flow.probability
    assert wrong <= last.output_norm <= wrong * np.sqrt(2.0)
    assert flow.loss == pytest.approx(-np.log(flow.probability))


def test_a_calibrated_answer_is_told_apart_from_the_loss(exported: Exported, flow: Flow) -> None:
    answered = answer(exported)
    assert flow.answered == pytest.approx(answered, abs=1e-5)
    units = survey(open_subject(str(exported.package)), flow.pixels_HWC, [])
    calibrated = dataclasses.replace(flow, answered=0.998, probability=0.961)
    [said] = [line for line in sentences(calibrated, units) if "temperature" in line]
    assert said.startswith("The model answers 99.8%: its calibration")
    same = dataclasses.replace(flow, answered=flow.probability)
    assert not any("temperature" in line for line in sentences(same, units))


def test_max_pooling_passes_to_winners_and_average_pooling_to_all(flow: Flow) -> None:
    largest, mean = flow.poolings
    assert largest.kind == "max pooling"
    assert 0.0 < largest.share < 0.5
    # What arrives is what is passed on: only the places differ.
    assert largest.passed_hw.sum() == pytest.approx(largest.arrives_hw.sum(), abs=1e-6)
    assert mean.kind == "global average pooling"
    assert np.ptp(mean.passed_hw) == 0.0
    assert mean.passed_hw.sum() == pytest.approx(float(mean.arrives_hw.sum()), abs=1e-6)


def test_dead_units_are_those_that_no_photo_excites(exported: Exported, flow: Flow) -> None:
    subject = open_subject(str(exported.package))
    found = survey(subject, flow.pixels_HWC, [])
    assert len(found.units) == 17
    assert all(item.dead is None for item in found.units)
    assert all(0.0 <= item.zero_share <= 1.0 for item in found.units)
    assert found.units[0].units == 64


def test_everything_is_told_and_drawn(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "flow.png"
    result = run(
        exported.package, photo(exported), "--data", exported.photos, "--json", "--out", out
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {item["layer"] for item in document["layers"]} >= {"features.conv1", "head.linear"}
    assert all(item["dead"] <= item["silent"] for item in document["relus"])
    assert document["photos"] > 9
    with Image.open(out) as picture:
        assert picture.height > picture.width
    page = tmp_path / "flow.html"
    assert run(exported.package, photo(exported), "--out", page).exit_code == 0
    assert "ReLUs that give 0" in page.read_text(encoding="utf-8")


def test_a_run_shows_its_epochs(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "epochs.png"
    result = run(exported.run.path, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    norms = json.loads(result.stdout)["gradient_norms"]
    assert next(iter(norms)) == "features.conv1"
    assert list(norms)[-1] == "head.linear"
    assert all(value > 0.0 for [value] in norms.values())
    assert out.is_file()


def test_a_run_of_before_says_that_it_has_no_gradients(exported: Exported, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "run.json", "metrics.jsonl"):
        text = (exported.run.path / name).read_text(encoding="utf-8")
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in text.splitlines()]
            for line in lines:
                del line["gradient_norms"]
            text = "".join(json.dumps(line) + "\n" for line in lines)
        (old / name).write_text(text, encoding="utf-8")
    result = run(old)
    assert "was made before gradients were recorded" in str(result.exception)
    (old / "metrics.jsonl").unlink()
    assert "has no finished epoch yet" in str(run(old).exception)


def test_what_has_no_flow_is_explained(exported: Exported) -> None:
    assert "give a photo as IMAGE" in run(exported.package).output
    message = str(run(exported.package, photo(exported), "--class", "puce").exception)
    assert "no class 'puce'; the classes are" in message


def test_norms_of_a_run_are_finite(exported: Exported) -> None:
    found = history(exported.run)
    assert found.phases == ("train",)
    assert torch.tensor(found.norms).isfinite().all()
