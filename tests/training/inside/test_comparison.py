"""`loupe inspect compare` on packages whose difference is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner

from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.comparison import compare, sentences
from training.inside.subject import InspectedNetwork, open_subject


def photos(exported: Exported) -> list[Path]:
    return sorted((exported.photos / "red").glob("[0-9]*.png"))[:2]


def scaled(subject: InspectedNetwork, weight: str, factor: float) -> InspectedNetwork:
    """*subject* with one weight multiplied by *factor*."""
    assert subject.encoded is not None
    model = onnx.ModelProto.FromString(subject.encoded)
    tensor = next(item for item in model.graph.initializer if item.name == weight)
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor) * np.float32(factor), weight
        )
    )
    return dataclasses.replace(subject, encoded=model.SerializeToString())


def test_the_first_layer_that_differs_is_named(exported: Exported, tmp_path: Path) -> None:
    subject = open_subject(str(exported.package), store=tmp_path)
    changed = scaled(subject, "network.features.layer2.0.conv1.weight", 1.1)
    photo = photos(exported)[0]
    found = compare(subject, changed, (photo, photo))
    first = found.first_beyond(0.01)
    assert first is not None
    assert first.layer == "features.layer2.0.conv1"
    before = found.differences[: found.differences.index(first)]
    assert len(before) > 5
    assert all(item.relative_error == 0.0 for item in before)
    assert compare(subject, subject, (photo, photo)).first_beyond(0.0) is None


def test_two_photos_part_at_the_first_layer(exported: Exported, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    first, second = photos(exported)
    arguments = ["compare", str(exported.package), "--image", str(first), "--image", str(second)]
    result = CliRunner().invoke(inspect, [*arguments, "--json", "--out", str(page)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["first_beyond"] == document["layers"][0]["layer"]
    assert len(document["answers"]) == 2
    assert "Error layer by layer" in page.read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_explained(exported: Exported) -> None:
    photo = str(photos(exported)[0])
    result = CliRunner().invoke(inspect, ["compare", str(exported.package), "--image", photo])
    assert "give OTHER and one --image, or two --image and no OTHER" in result.output


def test_layers_without_a_counterpart_are_named(exported: Exported) -> None:
    subject = open_subject(str(exported.package))
    photo = photos(exported)[0]
    fewer = dataclasses.replace(subject, layers=subject.layers[:2] + subject.layers[3:])
    name = subject.layers[2].name
    said = sentences(compare(subject, fewer, (photo, photo)), 0.01)
    assert f"1 layer has no counterpart of the same name and shape: {name}." in said
    fewer = dataclasses.replace(subject, layers=subject.layers[8:])
    said = sentences(compare(subject, fewer, (photo, photo)), 0.01)
    assert said[-1].startswith("8 layers have no counterpart of the same name and shape: ")
    assert said[-1].endswith(" and 3 more.")
