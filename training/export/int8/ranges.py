"""The range of a value that 256 levels cover, chosen from its histogram.

Letters used in shapes: B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from training.export.int8.statistics import Spread

Method = Literal["min-max", "percentile"]
METHODS: tuple[Method, ...] = ("min-max", "percentile")
PERCENTILE = 99.99

Range = tuple[float, float]


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
