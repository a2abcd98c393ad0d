"""The four kinds of normalisation against torch's modules, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from models.errors import BadRequest
from tests.training.inside.lessons.graphs import photo, subject
from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.lessons.normalisation import KINDS, compare, group_count, normalised, spreads
from training.inside.lessons.normalisation_page import parts
from training.inside.lessons.numbers import WIDTH
from training.inside.lessons.part import printed


@pytest.mark.parametrize(
    "shape", [(4, 12, 5, 7), (1, 6, 3, 3), (3, 7, 2, 2), (2, 64, 4, 4), (2, 1, 3, 3)]
)
def test_each_kind_is_torchs_own(shape: tuple[int, ...]) -> None:
    values_NChw = np.random.default_rng(0).normal(3.0, 2.0, shape)
    channels = shape[1]
    groups = group_count(channels)
    theirs = {
        "batch": nn.BatchNorm2d(channels, affine=False).double().train(),
        "layer": nn.GroupNorm(1, channels, affine=False).double(),
        "instance": nn.InstanceNorm2d(channels).double(),
        "group": nn.GroupNorm(groups, channels, affine=False).double(),
    }
    for kind in KINDS:
        found = normalised(values_NChw, kind, groups)
        expected_NChw = theirs[kind](torch.from_numpy(values_NChw)).numpy()
        assert np.allclose(found.values_NChw, expected_NChw, atol=1e-12), kind
        assert found.sets * found.set_size == values_NChw.size
    over_all = nn.LayerNorm(shape[1:], elementwise_affine=False).double()
    layer = normalised(values_NChw, "layer", groups).values_NChw
    assert np.allclose(layer, over_all(torch.from_numpy(values_NChw)).numpy(), atol=1e-12)


def test_means_and_variances_are_those_of_the_sets() -> None:
    values_NChw = np.random.default_rng(0).normal(size=(3, 8, 4, 4))
    for kind, axes in (("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3))):
        found = normalised(values_NChw, kind, 2)
        assert np.allclose(found.mean_S, values_NChw.mean(axis=axes).ravel())
        assert np.allclose(found.variance_S, values_NChw.var(axis=axes).ravel())
    batch = spreads(normalised(values_NChw, "batch", 2).values_NChw)
    layer = spreads(normalised(values_NChw, "layer", 2).values_NChw)
    assert batch[0] == pytest.approx(0.0, abs=1e-12)
    assert layer[1] == pytest.approx(0.0, abs=1e-12)
    assert batch[1] > 0.01
    assert layer[0] > 0.01


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (32, 16), (12, 6), (7, 1), (1, 1), (2, 1), (144, 24)]
)
def test_groups_share_the_channels_equally(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


def test_one_image_and_a_map_of_one_value_are_warned_of(tmp_path: Path) -> None:
    compared = compare(subject(kernel_shape=[12, 12]), [photo(tmp_path)], "made")
    lines = [line for part in parts(compared) for line in printed(part)]
    text = " ".join(lines)
    assert "With one image, batch and instance normalisation are the same." in text
    assert "A map has one value here" in text
    assert max(map(len, lines)) <= WIDTH
    (tmp_path / "note.txt").write_text("no photo")
    with pytest.raises(BadRequest, match=r"note\.txt: received 8 bytes .* not an image"):
        compare(subject(kernel_shape=[3, 3]), [photo(tmp_path), tmp_path / "note.txt"], "made")
    with pytest.raises(BadRequest, match="gives 3 values and no map"):
        compare(subject(kernel_shape=[3, 3]), [photo(tmp_path)], "logits")


def test_the_command_compares_photos_of_a_package(exported: Exported, tmp_path: Path) -> None:
    images = [str(path) for path in sorted((exported.photos / "red").glob("00[1-4].png"))]
    for out in (tmp_path / "a.html", tmp_path / "a.png"):
        arguments = ["normalisation", str(exported.package), *images, "--json", "--out", str(out)]
        result = CliRunner().invoke(inspect, arguments)
        assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["shape"] == [len(images), 64, 16, 16]
    assert [kind["sets"] for kind in found["kinds"]] == [64, len(images), 64 * len(images), 128]
    assert "data:image/png;base64," in (tmp_path / "a.html").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
