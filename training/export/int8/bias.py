"""Biases of an int8 graph corrected for what rounding its weights adds to each channel on average.

Letters used in shapes: C input channels, K output channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from training.export.int8.graph import Array, Graph, attribute
from training.export.int8.statistics import Spread


def correct(encoded: bytes, graph: Graph, spreads: Mapping[str, Spread]) -> bytes:
    """*encoded*, which is *graph* in int8, with each convolution giving the mean that its float
    weights give. Source: Nagel et al. 2019, section 4.2.

    A rounded weight is off by a little, and what it is multiplied with has a mean: that of
    *spreads*, measured on the calibration images.
    """
    integers = Graph.of(encoded)
    for node in graph.nodes:
        weight = graph.weight(node)
        stored = _stored(integers, node.input[1]) if weight is not None else None
        if (
            weight is None
            or stored is None
            or node.op_type != "Conv"
            or node.input[0] not in spreads
            or len(node.input) < 3
        ):
            continue
        _move_bias(
            integers,
            node.input[2],
            _shift(
                weight - stored, spreads[node.input[0]].mean_C, group=attribute(node, "group", 1)
            ),
        )
    return integers.encoded()


def _stored(integers: Graph, name: str) -> Array | None:
    """Weight *name* as the int8 graph has it, in float; None if it was left in float."""
    levels, scale_K = integers.constant(f"{name}_quantized"), integers.constant(f"{name}_scale")
    if levels is None or scale_K is None:
        return None
    return np.asarray(
        levels.astype(np.float32) * scale_K.reshape((-1,) + (1,) * (levels.ndim - 1)), np.float32
    )


def _shift(error: Array, mean_C: Array, *, group: int) -> Array:
    """What *error* of a convolution's weight does to the mean of each output channel."""
    by_input = error.sum(axis=tuple(range(2, error.ndim)))
    outputs, inputs = by_input.shape
    mean_GC = np.repeat(mean_C.reshape(group, inputs), outputs // group, axis=0)
    return np.asarray((by_input * mean_GC).sum(axis=1), np.float32)


def _move_bias(integers: Graph, name: str, shift_K: Array) -> None:
    levels, scale_K = (
        integers.constant(f"{name}_quantized"),
        integers.constant(f"{name}_quantized_scale"),
    )
    if levels is None or scale_K is None:
        return
    moved = levels.astype(np.int64) + np.rint(shift_K / scale_K).astype(np.int64)
    limits = np.iinfo(np.int32)
    integers.set_constant(f"{name}_quantized", np.clip(moved, limits.min, limits.max))
