"""Signed weights that overflow in no x86 kernel: as fast as signed ones are, as exact as unsigned
ones.

Letters used in shapes: K output channels, C input channels, h and w cells of the kernel, P pairs of
weights.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from training.export.int8.graph import Array, Graph, channel_axis, is_depthwise

MOST_TOGETHER = 128
"""Of two weights of one sign that are added after multiplication: 255 * 128 is the most that 16 bits hold of them."""


def with_safe_pairs(encoded: bytes, graph: Graph) -> bytes:
    """*encoded*, which is *graph* in int8, with weights just so much coarser, channel by channel,
    that no pair of products can overflow 16 bits.

    Without VNNI, `vpmaddubsw` multiplies two neighbouring weights with unsigned activations and
    adds the products in 16 bits. ONNX Runtime's reduce_range forbids every weight to be above 64;
    here one may be, where its neighbour is small or of the other sign. Depthwise convolutions keep
    all eight bits: their kernel adds in 32. Source: ONNX Runtime's MLAS, QgemmU8X8KernelAvx2 and
    qdwconv.
    """
    integers = Graph.of(encoded)
    factors: dict[str, Array] = {}
    for node in graph.nodes:
        weight = graph.weight(node)
        if (
            weight is None
            or is_depthwise(node, weight)
            or integers.constant(f"{node.input[1]}_quantized") is None
        ):
            continue
        name = node.input[1]
        if name not in factors:
            factors[name] = _coarsen(
                integers, name, np.moveaxis(weight, channel_axis(node), 0), axis=channel_axis(node)
            )
        _rescale_bias(integers, node, factors[name])
    return integers.encoded()


def largest_pair(levels: Array) -> Array:
    """Of each output channel, the largest sum of two neighbours of one sign.

    *levels* are [K,C], or [K,C,h,w], which kernels read as [K,h,w,C].
    """
    rows = np.moveaxis(levels, 1, -1).reshape(len(levels), -1)
    pairs_KP2 = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    sums_2KP = np.stack([np.maximum(sign * pairs_KP2, 0.0).sum(axis=2) for sign in (1.0, -1.0)])
    return np.asarray(sums_2KP.max(axis=(0, 2)), np.float32)


def _coarsen(integers: Graph, name: str, weight: Array, *, axis: int) -> Array:
    """Store *weight*, its output channels first, anew; by what each channel's scale, or the one of
    all, had to grow.
    """
    scale = integers.constant(f"{name}_scale")
    assert scale is not None
    # One less than what fits: rounding may add a half to each of the two.
    pair_K = largest_pair(weight / _along(scale, weight)) / (MOST_TOGETHER - 1)
    factor = np.maximum(pair_K if scale.ndim else pair_K.max(), np.float32(1.0))
    levels = np.clip(np.rint(weight / _along(scale * factor, weight)), -127.0, 127.0)
    integers.set_constant(f"{name}_quantized", np.moveaxis(levels, 0, axis))
    integers.set_constant(f"{name}_scale", scale * factor)
    return np.asarray(factor, np.float32)


def _rescale_bias(integers: Graph, node: NodeProto, factor: Array) -> None:
    """The bias of *node*, which is stored in units of its weight's scale."""
    levels = integers.constant(f"{node.input[2]}_quantized") if len(node.input) > 2 else None
    scale = integers.constant(f"{node.input[2]}_quantized_scale") if levels is not None else None
    if levels is not None and scale is not None:
        integers.set_constant(f"{node.input[2]}_quantized", np.rint(levels / factor))
        integers.set_constant(f"{node.input[2]}_quantized_scale", scale * factor)


def _along(values: Array, weight: Array) -> Array:
    """*values*, one or one for each output channel, in the shape that *weight* is divided by."""
    return values.reshape((-1,) + (1,) * (weight.ndim - 1)) if values.ndim else values
