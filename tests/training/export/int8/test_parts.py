"""The search for int8 and its parts, each by itself, on MobileNetV2 and on six plain convolutions
with random weights.

Letters used in shapes: N images, H and W pixels, C channels.
"""

import dataclasses
import itertools

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from models.networks.catalogue import build
from models.networks.heads import LinearHead
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, ServedGraph
from models.package.manifest import PreprocessSpec
from training.export.int8 import candidate
from training.export.int8.bias import correct_biases
from training.export.int8.candidate import Bench, Race, Settings
from training.export.int8.graph import Graph
from training.export.int8.pair_safe import with_safe_pairs
from training.export.int8.pixels import take_pixels
from training.export.int8.qdq import quantised
from training.export.int8.search import measurable, search
from training.export.int8.statistics import BINS, METHODS, Spread, ranges, spreads
from training.export.onnx_file import to_onnx

SIDE = 64
SPEC = PreprocessSpec(resize_size=SIDE, crop=(SIDE, SIDE))
PIXELS_NHWC = np.random.default_rng(0).integers(0, 256, size=(8, SIDE, SIDE, 3), dtype=np.uint8)


def exported(network):
    """*network* in ONNX, with batch normalisation that has seen the pixels, so that its answers
    differ from image to image.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0)
    with torch.no_grad():
        graph.train()(torch.from_numpy(PIXELS_NHWC))
    return to_onnx(graph.eval(), SPEC, "torch.onnx legacy")


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    return exported(build("mobilenet_v2", num_classes=5))


@pytest.fixture(scope="module")
def plain():
    """Six convolutions with ReLU between them."""
    torch.manual_seed(0)
    layers = [
        layer
        for index in range(6)
        for layer in (
            nn.Conv2d(16 if index else 3, 16, 3, stride=1 + index % 2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
    ]
    return exported(Network(nn.Sequential(*layers), LinearHead(16, 5, dropout=0.0)))


def batches():
    return [PIXELS_NHWC[:4], PIXELS_NHWC[4:]]


def measured(graph):
    return spreads(graph, measurable(graph), batches)


def logits(encoded):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(encoded, options, providers=["CPUExecutionProvider"]).run(
        ["logits"], {"image": PIXELS_NHWC}
    )[0]


def spoilt(encoded, factor):
    """The same function, with one channel between the third and the fourth convolution *factor*
    times as large; and the names of both.
    """
    graph = Graph.of(encoded)
    first, second = [node for node in graph.nodes if node.op_type == "Conv"][2:4]
    changed = {
        first.input[1]: graph.weight(first).copy(),
        first.input[2]: graph.constant(first.input[2]).copy(),
        second.input[1]: graph.weight(second).copy(),
    }
    changed[first.input[1]][3] *= factor
    changed[first.input[2]][3] *= factor
    changed[second.input[1]][:, 3] /= factor
    for name, value in changed.items():
        graph.set_constant(name, value)
    return graph.encoded(), {first.name, second.name}


def test_corrected_biases_take_back_what_rounding_adds_on_average(mobilenet):
    """Of the last convolution in pair-safe weights, whose inputs have a mean far from 0."""
    graph = Graph.of(mobilenet)
    found = measured(graph)
    plain = with_safe_pairs(
        quantised(graph, ranges(found, "min-max"), pixels=None, in_float=()), graph
    )
    corrected = correct_biases(plain, graph, found)
    node = [node for node in graph.needed_for("logits") if node.op_type == "Conv"][-1]
    _, weight, bias = node.input

    def stored(encoded, name, scale):
        integers = Graph.of(encoded)
        levels = integers.constant(f"{name}_quantized")
        return levels * integers.constant(scale).reshape(-1, *[1] * (levels.ndim - 1))

    error_KC = (graph.weight(node) - stored(plain, weight, f"{weight}_scale")).sum(axis=(2, 3))
    lost_K = error_KC @ found[node.input[0]].mean_C
    scale = f"{bias}_quantized_scale"
    level = float(np.max(Graph.of(plain).constant(scale)))
    assert np.abs(lost_K).max() > 20.0 * level
    np.testing.assert_allclose(
        stored(corrected, bias, scale) - stored(plain, bias, scale), lost_K, atol=level
    )


def first_sums(encoded):
    """What the first convolution of *encoded* gives, [N,C,H,W]."""
    graph = Graph.of(encoded)
    name = next(node for node in graph.nodes if node.op_type == "Conv").output[0]
    graph.model.graph.output.add().name = name
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph.encoded(), options, providers=["CPUExecutionProvider"]).run(
        [name], {"image": PIXELS_NHWC}
    )[0]


def test_pixels_reach_the_first_convolution_as_they_are_and_only_the_border_differs(mobilenet):
    graph = Graph.of(mobilenet)
    # ImageNet's means are 124, 116 and 104 of 255.
    assert take_pixels(graph).zero == 114
    before, after = first_sums(mobilenet), first_sums(graph.encoded())
    # A stride of two with padding before: the first row and column alone see the border.
    np.testing.assert_allclose(after[:, :, 1:, 1:], before[:, :, 1:, 1:], atol=1e-4)
    assert np.abs(after - before).max() > 1e-3


def spread_of(values):
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins=BINS, range=(low, high))
    return Spread(low, high, np.float32([values.mean()]), counts.astype(np.int64))


def test_ranges_keep_all_or_leave_out_what_is_rare():
    values = np.abs(np.random.default_rng(1).normal(size=100_000))
    values[:3] = 100.0
    found = {method: ranges({"x": spread_of(values)}, method)["x"] for method in METHODS}
    assert found["min-max"] == (0.0, 100.0)
    # Three of 100,000 are fewer than half of the 10 that may be cut off.
    low, high = found["percentile"]
    assert low == 0.0
    assert 2.0 < high < 20.0


def test_zero_is_inside_every_range():
    values = np.random.default_rng(2).uniform(5.0, 6.0, size=1000)
    for method in METHODS:
        assert ranges({"x": spread_of(values)}, method)["x"][0] == 0.0
        assert ranges({"x": spread_of(-values)}, method)["x"][1] == 0.0


class _Strict(Bench):
    """Accepts candidates whose logits are near enough: accuracy says nothing of random weights."""

    def __init__(self, encoded, *, within):
        super().__init__(
            encoded, PIXELS_NHWC, np.zeros(len(PIXELS_NHWC), np.int64), budget_points=100.0
        )
        self.within = within

    def judge(self, name, encoded):
        found = super().judge(name, encoded)
        return dataclasses.replace(found, inside=found.distance <= self.within)


def searched(encoded, *, within):
    """The whole search, and the names of its candidates in the order in which they were tried."""
    names = []
    bench = _Strict(encoded, within=within)
    return (
        search(
            encoded,
            bench,
            batches,
            time_budget_s=600.0,
            calibration_images=8,
            watch=lambda one: names.append(one.name),
        ),
        names,
    )


@pytest.fixture
def untimed(monkeypatch):
    """All candidates as fast as fp32: what is chosen hangs on nothing but the numbers."""
    monkeypatch.setattr(
        "training.export.int8.candidate.interleaved",
        lambda first, second, pixels_1HWC: Race(1.0, 1.0, 1.0),
    )


def test_where_nothing_is_inside_the_layers_that_int8_hurts_most_stay_in_float(plain, untimed):
    """Between two convolutions one channel drowns the others: both must stay in float."""
    encoded, between = spoilt(plain, 1e5)
    unspoilt, _ = searched(plain, within=np.inf)
    found, names = searched(encoded, within=4.0 * unspoilt.taken.distance)
    assert set(found.taken.settings.in_float) == between
    assert [name.partition("weights, ")[2] for name in names[-2:]] == [
        "1 layers in float",
        "2 layers in float",
    ]
    assert [one.inside for one in found.path[1:]] == [False] * (len(names) - 1) + [True]


def test_where_nothing_helps_fp32_is_kept_and_the_best_is_named(plain, untimed):
    found, names = searched(plain, within=0.0)
    assert found.taken is None
    assert found.reason.startswith(
        f"fp32 is kept: none of {len(names)} int8 candidates is inside the accuracy budget of 100"
        " points (everything was tried); "
    )
    assert min(found.path[1:], key=lambda one: one.distance).name in found.reason


def test_the_search_tries_what_its_guide_says_and_ends_at_the_nearest(plain, untimed):
    found, names = searched(plain, within=np.inf)
    assert [name.split(",")[0] for name in names[:2]] == list(METHODS)
    assert "bias corrected" in names[2]
    assert len(names) == 3
    assert found.taken.distance == min(one.distance for one in found.path[1:])
    assert [one.name for one in found.path if one.taken] == [found.taken.name]


def test_the_speed_of_two_models_is_that_of_neighbouring_runs(monkeypatch):
    """A machine that gets three times slower half way through: the one model remains one and a half
    times as fast as the other.
    """
    now = 0.0

    class Session:
        def __init__(self, seconds):
            self.seconds, self.runs = seconds, 0

        def run(self, outputs, feeds):
            nonlocal now
            self.runs += 1
            now += self.seconds * (1.0 if self.runs <= 6 else 3.0)

    monkeypatch.setattr(
        candidate, "open_session", lambda encoded, **options: Session(float(encoded))
    )
    monkeypatch.setattr(candidate.time, "perf_counter", lambda: now)
    race = candidate.interleaved(b"0.003", b"0.002", PIXELS_NHWC[:1], runs=9)
    assert race.speedup == pytest.approx(1.5)
    assert (race.first_ms, race.second_ms) == (pytest.approx(9.0), pytest.approx(6.0))


def test_settings_are_named_in_words():
    assert str(Settings(method="percentile")) == "percentile, signed weights"
    assert (
        str(Settings(bias_corrected=True, pair_safe=True, in_float=("a", "b")))
        == "min-max, bias corrected, pair-safe weights, 2 layers in float"
    )


def test_the_winner_turns_on_no_timing(plain, monkeypatch):
    """Candidates with the same kernels are equally fast; the clock says otherwise by chance."""
    winners = set()
    for times in ([1.0, 9.0, 2.0], [9.0, 1.0, 5.0]):
        noise = itertools.cycle(times)
        monkeypatch.setattr(
            "training.export.int8.candidate.interleaved",
            lambda first, second, pixels_1HWC, noise=noise: Race(1.0, ms := next(noise), 1.0 / ms),
        )
        found, _ = searched(plain, within=np.inf)
        assert found.taken.distance == min(one.distance for one in found.path[1:])
        winners.add(found.taken.name)
    assert len(winners) == 1
