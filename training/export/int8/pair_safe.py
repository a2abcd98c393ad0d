"""Signed weights that overflow in no x86 kernel, at the speed of signed weights.

Letters used in shapes: K output channels, C input channels, h and w cells of the kernel, P pairs of
weights.
"""

from __future__ import annotations

import numpy as np

from training.export.int8.graph import Array, Graph, along, channel_axis, is_depthwise

PAIR_MAX = 128
"""Largest sum of two neighbouring weights of one sign: 255 * 128 is the most that fits 16 bits."""


def with_safe_pairs(encoded: bytes, graph: Graph) -> bytes:
    """*encoded*, which is *graph* in int8, with weights so coarse that no pair overflows.

    Without VNNI, `vpmaddubsw` multiplies two neighbouring weights with unsigned activations and
    adds the products in 16 bits. ONNX Runtime's reduce_range forbids every weight above 64. Here
    one may be larger, where its neighbour is small or of the other sign. Depthwise convolutions
    keep all eight bits: their kernel adds in 32. Source: ONNX Runtime's MLAS, QgemmU8X8KernelAvx2
    and qdwconv.
    """
    integers = Graph.of(encoded)
    factors: dict[str, Array] = {}
    for node in graph.nodes:
        weight = graph.weight(node)
        if weight is None or is_depthwise(node, weight):
            continue
        name, axis = node.input[1], channel_axis(node)
        scale_K = integers.constant(f"{name}_scale")
        if scale_K is None:  # left in float
            continue
        if name not in factors:
            rows = np.moveaxis(weight, axis, 0)
            # One less than what fits: rounding may add a half to each of the two.
            pair_K = largest_pair(rows / along(scale_K, rows)) / (PAIR_MAX - 1)
            factors[name] = np.maximum(pair_K, np.float32(1.0))
            coarse_K = scale_K * factors[name]
            levels = np.clip(np.rint(rows / along(coarse_K, rows)), -127.0, 127.0)
            integers.set_constant(f"{name}_quantized", np.moveaxis(levels, 0, axis))
            integers.set_constant(f"{name}_scale", coarse_K)
        # A bias is stored in units of its weight's scale.
        for bias in node.input[2:]:
            bias_K = integers.constant(f"{bias}_quantized")
            unit_K = integers.constant(f"{bias}_quantized_scale")
            if bias_K is not None and unit_K is not None:
                integers.set_constant(f"{bias}_quantized", np.rint(bias_K / factors[name]))
                integers.set_constant(f"{bias}_quantized_scale", unit_K * factors[name])
    return integers.encoded()


def largest_pair(levels: Array) -> Array:
    """Of each output channel, the largest sum of two neighbours of one sign.

    *levels* are [K,C], or [K,C,h,w], which kernels read as [K,h,w,C].
    """
    rows = np.moveaxis(levels, 1, -1).reshape(len(levels), -1)
    pairs_KP2 = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    sums_2KP = np.stack([np.maximum(sign * pairs_KP2, 0.0).sum(axis=2) for sign in (1.0, -1.0)])
    return np.asarray(sums_2KP.max(axis=(0, 2)), np.float32)
