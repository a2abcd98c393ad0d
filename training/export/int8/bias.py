"""Biases of an int8 graph corrected for the mean error that rounding weights adds to a channel.

Letters used in shapes: G groups, C input channels, K output channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from training.export.int8.graph import Array, Graph, along, attribute
from training.export.int8.statistics import Spread


def correct_biases(encoded: bytes, graph: Graph, spreads: Mapping[str, Spread]) -> bytes:
    """*encoded*, which is *graph* in int8, with convolutions that keep the float means.

    Source: Nagel et al. 2019, section 4.2. A rounded weight has a small error. Its input has a
    mean, which *spreads* holds as measured on the calibration images.
    """
    integers = Graph.of(encoded)
    limits = np.iinfo(np.int32)
    for node in graph.nodes:
        weight = graph.weight(node)
        if node.op_type != "Conv" or weight is None or len(node.input) < 3:
            continue
        value, name, bias = node.input
        levels, scale_K, bias_K, unit_K = (
            integers.constant(constant)
            for constant in (
                f"{name}_quantized",
                f"{name}_scale",
                f"{bias}_quantized",
                f"{bias}_quantized_scale",
            )
        )
        if (
            value not in spreads
            or levels is None
            or scale_K is None
            or bias_K is None
            or unit_K is None
        ):
            continue  # left in float
        error = weight - levels.astype(np.float32) * along(scale_K, weight)
        shift_K = _shift(error, spreads[value].mean_C, group=attribute(node, "group", 1))
        moved_K = bias_K.astype(np.int64) + np.rint(shift_K / unit_K).astype(np.int64)
        integers.set_constant(f"{bias}_quantized", np.clip(moved_K, limits.min, limits.max))
    return integers.encoded()


def _shift(error: Array, mean_C: Array, *, group: int) -> Array:
    """What *error* of a convolution's weight does to the mean of each output channel."""
    error_KC = error.sum(axis=tuple(range(2, error.ndim)))
    outputs, inputs = error_KC.shape
    mean_KC = np.repeat(mean_C.reshape(group, inputs), outputs // group, axis=0)
    return np.asarray((error_KC * mean_KC).sum(axis=1), np.float32)
