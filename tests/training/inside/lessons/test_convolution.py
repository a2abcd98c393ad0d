"""The arithmetic of one value, and of its gradients, against the graph and torch's autograd."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import ImageFont
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.errors import BadRequest
from tests.training.inside.lessons.graphs import photo, subject
from tests.training.small_runs import Exported
from training.inside.commands import inspect
from training.inside.lessons.backward import (
    arriving_gradients,
    backward,
    input_terms,
    kernel_gradient,
    torch_gradients,
)
from training.inside.lessons.convolution import (
    arriving_here,
    document,
    forward_parts,
    lesson,
    passed_back,
)
from training.inside.lessons.convolution_back import backward_parts
from training.inside.lessons.convolution_page import fitting
from training.inside.lessons.numbers import WIDTH, Matrix
from training.inside.lessons.part import printed
from training.inside.lessons.pooling import pooled_patch
from training.inside.lessons.window import layer_values, window_at

CONVOLUTIONS = {
    "plain": {"kernel_shape": [3, 3]},
    "padded": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "strided": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
    "dilated": {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "uneven": {"kernel_shape": [2, 5], "pads": [0, 1, 1, 3], "strides": [3, 2]},
    "same": {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "1x1": {"kernel_shape": [1, 1]},
    "depthwise": {"kernel_shape": [3, 3], "pads": [1] * 4, "group": 6, "inputs": 6, "outputs": 6},
    "grouped": {"kernel_shape": [3, 3], "group": 2, "inputs": 6, "outputs": 8},
    "many inputs": {"kernel_shape": [3, 3], "inputs": 40, "outputs": 5},
    "no bias": {"kernel_shape": [3, 3], "bias": False},
}
POOLINGS = {
    "max": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max, overlapping, padded": (
        "MaxPool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "average": ("AveragePool", {"kernel_shape": [3, 3], "strides": [3, 3]}),
    "average, padded": (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "average, padding counts": (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1},
    ),
    "average, rounded up": (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_value_by_hand_is_the_one_of_the_network(name: str, tmp_path: Path) -> None:
    values = layer_values(subject(**CONVOLUTIONS[name]), photo(tmp_path), "made")
    filters, height, width = values.output_Dhw.shape
    for channel in range(filters):
        for place in np.ndindex(height, width):
            window = window_at(values, channel, place)
            assert window.equal, (channel, place, window.total, window.value)
    assert (window.bias is None) == (name == "no bias")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_by_hand_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    """For every filter and every input value, in float64: only the order of sums differs."""
    network = subject(**CONVOLUTIONS[name])
    values = layer_values(network, photo(tmp_path), "made")
    arriving_Dhw = arriving_gradients(network, values).gradient_Dhw
    input_Chw, kernel_DIhw, bias_D = torch_gradients(values, arriving_Dhw)
    for channel in range(len(values.output_Dhw)):
        window = window_at(values, channel, (0, 0))
        ours_Ihw = kernel_gradient(values, window, arriving_Dhw[channel])
        assert np.allclose(ours_Ihw, kernel_DIhw[channel], atol=1e-12)
        assert arriving_Dhw[channel].sum() == pytest.approx(bias_D[channel], abs=1e-12)
        assert backward(values, window, arriving_gradients(network, values)).difference < 1e-12
    for place in np.ndindex(input_Chw.shape):
        got = sum(term.product for term in input_terms(values, arriving_Dhw, place))
        assert got == pytest.approx(input_Chw[place], abs=1e-12)


def test_the_gradient_that_arrives_is_the_slope_of_the_score(tmp_path: Path) -> None:
    """Against a difference quotient on the head of the graph: ReLU, mean, linear."""
    network = subject(kernel_shape=[3, 3])
    values = layer_values(network, photo(tmp_path), "made")
    arriving = arriving_gradients(network, values)
    head_DK = torch.from_numpy(
        np.random.default_rng(1).normal(size=(3 * 3 + 4 * 3)).astype(np.float64)[9:].reshape(4, 3)
    ).float()
    made = torch.from_numpy(values.output_Dhw).float().requires_grad_()
    logits_K = torch.relu(made).mean(dim=(1, 2)) @ head_DK
    best = int(logits_K.argmax())
    [gradient_Dhw] = torch.autograd.grad(logits_K[best], made)
    assert network.labels[best] == arriving.label
    assert float(logits_K[best].detach()) == pytest.approx(arriving.score, rel=1e-5)
    assert np.allclose(gradient_Dhw.numpy(), arriving.gradient_Dhw, atol=1e-7)


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_by_hand_is_the_one_of_the_network(name: str, tmp_path: Path) -> None:
    """Forwards at every place; backwards the winner, or equal shares, as in torch."""
    kind, attributes = POOLINGS[name]
    network = subject(kind, **attributes)
    for place in ((0, 0), (2, 1), (3, 3)):
        found = lesson(network, photo(tmp_path), "made", channel=1, place=place, backwards=True)
        assert found.window.equal, place
        given = torch.from_numpy(found.values.input_Chw)[None].requires_grad_()
        how = {
            "kernel_size": attributes["kernel_shape"],
            "stride": attributes["strides"],
            "padding": attributes.get("pads", [0])[0],
            "ceil_mode": bool(attributes.get("ceil_mode")),
        }
        if kind == "MaxPool":
            result = F.max_pool2d(given, **how)
        else:
            result = F.avg_pool2d(
                given, count_include_pad=bool(attributes.get("count_include_pad")), **how
            )
        [gradient] = torch.autograd.grad(result[0, 1][place], given)
        back_hw = passed_back(found)
        for row, column in np.ndindex(back_hw.shape):
            if found.window.inside_hw[row, column]:
                at = found.window.rows[row], found.window.columns[column]
                theirs = float(gradient[0, 1][at]) * arriving_here(found)
                assert back_hw[row, column] == pytest.approx(theirs, abs=1e-12)


def test_the_example_of_pooling_is_what_torch_pools_and_passes_back(tmp_path: Path) -> None:
    values = layer_values(subject(kernel_shape=[3, 3]), photo(tmp_path), "made")
    for place in ((0, 0), (9, 9), (5, 4)):
        found = pooled_patch(values, window_at(values, 2, place))
        assert found is not None
        for pool, result_hw, back_hw in (
            (F.max_pool2d, found.maxima_hw, found.max_back_hw),
            (F.avg_pool2d, found.means_hw, found.mean_back_hw),
        ):
            patch = torch.from_numpy(found.values_hw.copy())[None, None].requires_grad_()
            pooled = pool(patch, 2)
            [gradient] = torch.autograd.grad(pooled.sum(), patch)
            assert np.allclose(pooled[0, 0].detach().numpy(), result_hw)
            assert np.array_equal(gradient[0, 0].numpy(), back_hw)


def test_the_strongest_answer_is_shown_unless_another_is_asked_for(tmp_path: Path) -> None:
    network, image = subject(kernel_shape=[3, 3]), photo(tmp_path)
    values = layer_values(network, image, "made")
    assert window_at(values).value == values.output_Dhw.max()
    assert window_at(values, 2).value == values.output_Dhw[2].max()
    assert window_at(values, place=(1, 7)).value == values.output_Dhw[:, 1, 7].max()
    found = lesson(network, image, "made", backwards=True)
    assert found.arriving is not None
    assert abs(arriving_here(found)) == np.abs(found.arriving.gradient_Dhw).max()


@pytest.mark.parametrize("name", ["many inputs", "uneven", "depthwise", "padded"])
def test_the_terminal_needs_80_columns_at_most(name: str, tmp_path: Path) -> None:
    found = lesson(
        subject(**CONVOLUTIONS[name]), photo(tmp_path), "made", place=(0, 0), backwards=True
    )
    lines = [
        line for part in forward_parts(found) + backward_parts(found) for line in printed(part)
    ]
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) < 130
    text = "\n".join(lines)
    assert ("pad" in text) == bool(found.values.layer.padding and any(found.values.padding))
    assert ("32 other channels" in text) == (name == "many inputs")
    assert ("6 groups: each filter reads 1 of the 6" in text) == (name == "depthwise")


def test_numbers_of_a_picture_are_rounded_and_never_cut() -> None:
    matrix = Matrix(title="kernel", values_hw=np.array([[-0.0678, 1.0], [0.2, -0.004]]))
    font = ImageFont.load_default(11)
    wide = fitting(matrix, font, 40)
    assert wide == [["-0.068", "1.000"], ["0.200", "-0.004"]]
    narrow = fitting(matrix, font, 30)
    assert narrow == [["-0.07", "1.00"], ["0.20", "0.00"]]


def test_a_kernel_of_16x16_is_cut_for_the_terminal_only(tmp_path: Path) -> None:
    """As the patches of a vision transformer are: here 12x12, the whole image."""
    found = lesson(subject(kernel_shape=[12, 12]), photo(tmp_path), "made")
    lines = [line for part in forward_parts(found) for line in printed(part)]
    assert max(map(len, lines)) <= WIDTH
    assert "patch, the first 11x11" in lines
    assert np.shape(document(found)["patch"]) == (3, 12, 12)


def test_what_is_not_there_is_explained(tmp_path: Path) -> None:
    network, image = subject(kernel_shape=[3, 3]), photo(tmp_path)
    for arguments, message in (
        ({"channel": 4}, r"--filter 4: layer made has filters 0 to 3"),
        ({"channel": -1}, r"--filter -1: layer made has filters 0 to 3"),
        ({"place": (10, 0)}, r"--at 10,0: the map of made has rows 0 to 9 and columns 0 to 9"),
    ):
        with pytest.raises(BadRequest, match=message):
            lesson(network, image, "made", **arguments)
    with pytest.raises(BadRequest, match=r"layer active \(ReLU\) moves no window over a map"):
        lesson(network, image, "active")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(inspect, ["convolution", *map(str, arguments)])


def test_the_command_shows_a_packages_numbers(exported: Exported, tmp_path: Path) -> None:
    image = next((exported.photos / "red").glob("[0-9]*.png"))
    out = tmp_path / "lesson.html"
    result = run(exported.package, image, "--backward", "--json", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    products = np.asarray(found["patch"]) * np.asarray(found["kernel"])
    assert found["equal"]
    assert products.sum() + found["bias"] == pytest.approx(found["value"], rel=1e-4)
    assert np.shape(found["backward"]["kernel"]) == (3, 7, 7)
    assert found["backward"]["difference_from_torch"] < 1e-10
    text = out.read_text(encoding="utf-8")
    assert "What pooling would pass back" in text
    assert "http" not in text
    assert "<script" not in text
    result = run(exported.package, image, "--layer", "max_pool2d", "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert "The largest value of the patch is the answer." in result.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("value", ["3", "1,2,3", "a,b", "-1,2", ""])
def test_a_place_that_is_none_is_a_wrong_option(exported: Exported, value: str) -> None:
    image = next((exported.photos / "red").glob("[0-9]*.png"))
    result = run(exported.package, image, f"--at={value}")
    assert result.exit_code == 2
    assert "is no place; expected row and column, as in 10,12" in result.output
