"""What the values of a float graph look like on real images, gathered batch by batch: memory does
not grow with their number.

Letters used in shapes: N images, C channels, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from models.runtime.providers import session_options
from training.export.int8.graph import INPUT, Array, Graph

BINS = 2048
Batches = Callable[[], Iterable[NDArray[np.uint8]]]
"""Gives the calibration images anew, as `uint8 [N,H,W,3]`, each time it is called."""


@dataclass
class Spread:
    """One value of the graph over all images and places."""

    low: float
    high: float
    high_C: Array
    """Largest magnitude in each channel."""
    mean_C: Array
    """Mean of each channel."""
    counts_B: NDArray[np.int64]
    """Between `low` and `high`, in `BINS` bins of equal width."""


def spreads(graph: Graph, values: Sequence[str], batches: Batches) -> dict[str, Spread]:
    """The spread of each of *values*.

    Goes through the images twice: histograms need their bounds first.
    """
    session = _session(graph, values)
    found: dict[str, Spread] = {}
    images = 0
    for pixels_NHWC in batches():
        count = len(pixels_NHWC)
        for name, value in _run(session, values, pixels_NHWC):
            by_channel = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
            low, high = float(value.min()), float(value.max())
            high_C, mean_C = (
                np.maximum(by_channel.max(axis=1), -by_channel.min(axis=1)),
                by_channel.mean(axis=1),
            )
            if name not in found:
                found[name] = Spread(low, high, high_C, mean_C, np.zeros(BINS, np.int64))
                continue
            spread = found[name]
            spread.low, spread.high = min(spread.low, low), max(spread.high, high)
            spread.high_C = np.maximum(spread.high_C, high_C)
            spread.mean_C = spread.mean_C + (mean_C - spread.mean_C) * (count / (images + count))
        images += count
    for pixels_NHWC in batches():
        for name, value in _run(session, values, pixels_NHWC):
            spread = found[name]
            width = (spread.high - spread.low) / BINS or 1.0
            bins = ((value.ravel() - spread.low) / width).astype(np.int32)
            spread.counts_B += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return found


def _session(graph: Graph, values: Sequence[str]) -> ort.InferenceSession:
    """A session of *graph* that gives *values* and nothing else."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.name for value in values for node in Graph(model).needed_for(value)}
    kept = [node for node in model.graph.node if node.name in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    options = session_options(0, provider="cpu")
    # Fused operators would swallow the values that are asked for, and every fusion differs a little
    # from the graph as it is written.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(
    session: ort.InferenceSession, values: Sequence[str], pixels_NHWC: NDArray[np.uint8]
) -> Iterator[tuple[str, Array]]:
    return zip(values, session.run(list(values), {INPUT: pixels_NHWC}), strict=True)
