"""What the values of a float graph look like on real images, and the ranges that 256 levels cover.

Values are gathered batch by batch, so that memory does not grow with the number of images. Letters
used in shapes: N images, C channels, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from models.runtime.providers import session_options
from training.export.int8.graph import INPUT, Array, Graph

Method = Literal["min-max", "percentile"]
METHODS: tuple[Method, ...] = ("min-max", "percentile")
PERCENTILE = 99.99

Range = tuple[float, float]
BINS = 2048
Batches = Callable[[], Iterable[NDArray[np.uint8]]]
"""Gives the calibration images again, as `uint8 [N,H,W,3]`, each time it is called."""


@dataclass
class Spread:
    """One value of the graph over all images and places."""

    low: float
    high: float
    mean_C: Array
    """Mean of each channel."""
    counts_B: NDArray[np.int64]
    """Between `low` and `high`, in `BINS` bins of equal width."""


def spreads(graph: Graph, values: Sequence[str], batches: Batches) -> dict[str, Spread]:
    """The spread of each of *values*.

    Goes through the images twice: a histogram needs its bounds first.
    """
    session = _session(graph, values)
    found: dict[str, Spread] = {}
    images = 0
    for pixels_NHWC in batches():
        images += len(pixels_NHWC)
        for name, value in zip(values, session.run(values, {INPUT: pixels_NHWC}), strict=True):
            mean_C = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(axis=1)
            low, high = float(value.min()), float(value.max())
            spread = found.setdefault(name, Spread(low, high, mean_C, np.zeros(BINS, np.int64)))
            spread.low, spread.high = min(spread.low, low), max(spread.high, high)
            spread.mean_C = spread.mean_C + (mean_C - spread.mean_C) * (len(pixels_NHWC) / images)
    for pixels_NHWC in batches():
        for name, value in zip(values, session.run(values, {INPUT: pixels_NHWC}), strict=True):
            spread = found[name]
            width = (spread.high - spread.low) / BINS or 1.0
            bins = ((value.ravel() - spread.low) / width).astype(np.int32)
            spread.counts_B += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return found


def ranges(spreads: Mapping[str, Spread], method: Method) -> dict[str, Range]:
    """Lowest and highest number that each value keeps; what lies outside saturates.

    0 is always inside.
    """
    found = {
        name: _percentile(spread) if method == "percentile" else (spread.low, spread.high)
        for name, spread in spreads.items()
    }
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in found.items()}


def _percentile(spread: Spread) -> Range:
    """The range without the outermost values, of which the same share is cut off at each side."""
    edges = np.linspace(spread.low, spread.high, len(spread.counts_B) + 1)
    share_B = np.cumsum(spread.counts_B) / spread.counts_B.sum()
    tail = (1.0 - PERCENTILE / 100.0) / 2.0
    first = int(np.searchsorted(share_B, tail, side="right"))
    last = int(np.searchsorted(share_B, 1.0 - tail, side="left"))
    # A ReLU gives many zeros and nothing below them: there is no tail to cut on that side.
    low = spread.low if spread.low >= 0.0 else float(edges[first])
    return low, float(edges[min(last + 1, len(edges) - 1)])


def _session(graph: Graph, values: Sequence[str]) -> ort.InferenceSession:
    """A session of *graph* that gives *values*."""
    model = onnx.ModelProto.FromString(graph.encoded())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    options = session_options(0, provider="cpu")
    # Fused operators would swallow the values that are asked for, and every fusion differs a little
    # from the graph as it is written.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
