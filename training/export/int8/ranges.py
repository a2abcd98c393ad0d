"""From how often a value occurs to the range that 256 levels shall cover.

Letters used in shapes: B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.export.int8.statistics import Spread

Method = Literal["min-max", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("min-max", "percentile", "entropy")
PERCENTILE = 99.99
LEVELS = 256
ENTROPY_STEPS = 64
"""Widths that are tried between the narrowest and all of the range."""

Range = tuple[float, float]


def ranges(spreads: Mapping[str, Spread], method: Method) -> dict[str, Range]:
    """Lowest and highest number that each value shall keep; what lies outside saturates.

    0 is always inside.
    """
    choose = {"min-max": _min_max, "percentile": _percentile, "entropy": _entropy}[method]
    return {name: _with_zero(choose(spread)) for name, spread in spreads.items()}


def _min_max(spread: Spread) -> Range:
    return spread.low, spread.high


def _percentile(spread: Spread) -> Range:
    """What is left when the outermost values are cut off, the same share at each side."""
    edges = np.linspace(spread.low, spread.high, len(spread.counts_B) + 1)
    share_B = np.cumsum(spread.counts_B) / spread.counts_B.sum()
    tail = (1.0 - PERCENTILE / 100.0) / 2.0
    first, last = (
        int(np.searchsorted(share_B, tail, side="right")),
        int(np.searchsorted(share_B, 1.0 - tail, side="left")),
    )
    # A ReLU gives many zeros and nothing below them: there is no tail to cut on that side.
    low = spread.low if spread.low >= 0.0 else float(edges[first])
    return low, float(edges[min(last + 1, len(edges) - 1)])


def _entropy(spread: Spread) -> Range:
    """The range whose 256 levels tell least apart from the histogram, by Kullback-Leibler
    divergence; both tails shrink together.

    Values at 0, and at an end where a ReLU6 piles them up, have a level of their own whatever the
    range: they are left out, or their spikes would seem to be lost. Source: Migacz 2017, "8-bit
    inference with TensorRT".
    """
    bins = len(spread.counts_B)
    edges = np.linspace(spread.low, spread.high, bins + 1)
    body_B, piled = _without_spikes(spread, edges)
    best, chosen = np.inf, (spread.low, spread.high)
    for share in np.linspace(LEVELS / bins, 1.0, ENTROPY_STEPS):
        low, high = spread.low * share if spread.low < 0.0 else spread.low, spread.high * share
        first, last = (
            max(int(np.searchsorted(edges, low, side="right")) - 1, 0),
            min(int(np.searchsorted(edges, high, side="left")), bins),
        )
        if last - first < LEVELS:
            continue
        cut = (piled[0] if first > 0 else 0, piled[1] if last < bins else 0)
        divergence = _divergence(body_B, first, last, cut)
        if divergence < best:
            best, chosen = divergence, (float(edges[first]), float(edges[last]))
    return chosen


def _without_spikes(
    spread: Spread, edges: NDArray[np.float64]
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """The histogram without what lies at 0 and piles up at its ends, and how much was piled up at
    each end.
    """
    body_B = spread.counts_B.copy()
    if spread.low <= 0.0 <= spread.high:
        body_B[min(max(int(np.searchsorted(edges, 0.0, side="right")) - 1, 0), len(body_B) - 1)] = 0
    piled = max(int(body_B[0] - body_B[1]), 0), max(int(body_B[-1] - body_B[-2]), 0)
    body_B[0] -= piled[0]
    body_B[-1] -= piled[1]
    return body_B, piled


def _divergence(counts_B: NDArray[np.int64], first: int, last: int, cut: tuple[int, int]) -> float:
    """Of the clipped histogram from its own 256-level version; *cut* comes to its ends besides."""
    inside = counts_B[first:last].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts_B[:first].sum() + cut[0]
    clipped[-1] += counts_B[last:].sum() + cut[1]
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = inside > 0
    total_L = np.bincount(level, weights=inside, minlength=LEVELS)
    filled_L = np.bincount(level, weights=filled, minlength=LEVELS)
    coarse = np.where(filled, total_L[level] / np.maximum(filled_L[level], 1.0), 0.0)
    p, q = clipped / max(clipped.sum(), 1.0), coarse / max(coarse.sum(), 1.0)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())


def _with_zero(found: Range) -> Range:
    return min(found[0], 0.0), max(found[1], 0.0)
