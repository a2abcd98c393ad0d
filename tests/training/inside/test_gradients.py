"""Gradients against what is known of them, and patches on planted photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from models.inspection.layers import layers_of
from models.inspection.operations import operations_of
from models.inspection.saliency import blurred
from models.networks.onnx_in_torch import OnnxNetwork
from models.pixels.preprocess import to_pixels
from models.runtime.answer_graph import answering_part
from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.gradients import effective_field, integrated_gradients


@pytest.fixture(scope="module")
def pixels_HWC(exported: Exported) -> np.ndarray:
    photo = next((exported.photos / "red").glob("[0-9]*.png"))
    return to_pixels(photo.read_bytes(), exported.manifest.preprocess)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits(
    exported: Exported, pixels_HWC: np.ndarray
) -> None:
    """Completeness, proposition 1 of the paper."""
    network = OnnxNetwork((exported.package / "model.onnx").read_bytes(), ["logits"])
    baseline_HWC = blurred(pixels_HWC)
    moved_HW = integrated_gradients(network, pixels_HWC, baseline_HWC, 0)
    images = torch.from_numpy(np.stack([baseline_HWC, pixels_HWC])).float()
    with torch.no_grad():
        before, after = network(images)[0][:, 0].tolist()
    assert moved_HW.shape == pixels_HWC.shape[:2]
    assert float(moved_HW.sum()) == pytest.approx(
        after - before, abs=0.02 * abs(after - before) + 0.02
    )


def test_what_moves_a_cell_lies_inside_its_receptive_field(
    exported: Exported, pixels_HWC: np.ndarray
) -> None:
    encoded, _ = answering_part((exported.package / "model.onnx").read_bytes())
    operations = operations_of(encoded)
    layers = layers_of(operations, operations[0].inputs[0], channels_last=True)
    layer = next(item for item in layers if item.name == "features.layer1.0.conv1")
    found = effective_field(OnnxNetwork(encoded, [layer.output]), pixels_HWC)
    assert layer.field is not None
    left, top, right, bottom = layer.field.region(found.row, found.column) or (0, 0, 0, 0)
    outside_HW = found.gradient_HW.copy()
    outside_HW[max(0, int(top)) : int(bottom), max(0, int(left)) : int(right)] = 0.0
    assert not outside_HW.any()
    assert found.gradient_HW.max() == 1.0
    assert 1 <= found.side_px <= right - left


def test_patches_are_the_strongest_places_of_nine_photos(
    exported: Exported, tmp_path: Path
) -> None:
    """Of grey photos, those with a white square excite a filter there."""
    photos = tmp_path / "photos" / "square"
    photos.mkdir(parents=True)
    for index in range(12):
        pixels_HWC = np.full((32, 32, 3), 128, np.uint8)
        if index < 9:
            pixels_HWC[4:8, 20:24] = 255
        Image.fromarray(pixels_HWC).save(photos / f"{index:02}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    out = tmp_path / "patches.png"
    arguments = ["patches", str(exported.package), "--data", str(photos.parent), "--json"]
    layer = ["--layer", "features.conv1", "--filter", "7", "--out", str(out)]
    result = CliRunner().invoke(inspect, arguments + layer)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["unreadable"] == ["square/broken.png"]
    assert document["photos"] == 12
    assert len({patch["photo"] for patch in document["patches"]}) == 9
    values = [patch["value"] for patch in document["patches"]]
    assert values == sorted(values, reverse=True)
    strongest = document["patches"][0]
    left, top, right, bottom = strongest["box"]
    assert (right - left, bottom - top) == (7, 7)
    with Image.open(out) as picture:
        assert picture.width > 9 * 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--filter", "64"), "layer features.conv1 has filters 0 to 63"),
        (("--layer", "head.linear"), "has no map whose cells see a patch"),
    ],
)
def test_what_has_no_patches_is_explained(
    exported: Exported, options: tuple[str, ...], message: str
) -> None:
    arguments = ["patches", str(exported.package), "--data", str(exported.photos), *options]
    assert message in str(CliRunner().invoke(inspect, arguments).exception)


def test_too_few_photos_are_said_to_be_few(exported: Exported, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "red"
    photos.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (32, 32), (index * 40, 0, 0)).save(photos / f"{index}.png")
    arguments = ["patches", str(exported.package), "--data", str(photos.parent)]
    result = CliRunner().invoke(inspect, arguments)
    assert "3 photos can be read; 9 patches need 9 photos or more" in str(result.exception)
