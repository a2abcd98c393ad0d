"""What a job found, in numbers: classes, failures, and how far the images are from those that the model was judged on.

Letters used in shapes: B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from models.manifest import DriftReference, Manifest
from service.scoring.tally import Tally

SHIFTED = 0.25
"""Population stability index above which a signal is called shifted. Source: the rule of thumb of credit scoring (below 0.1 is stable)."""
CHANCE = 1.645
"""Standard deviations above the mean that chance alone passes in one case of twenty."""


def psi(counts_B: Sequence[int], reference_B: Sequence[int]) -> float:
    """Population stability index between two histograms: 0 for equal shares. An empty bin counts as half an image."""
    shares = []
    for counts in (counts_B, reference_B):
        filled = [count or 0.5 for count in counts]
        shares.append([count / sum(filled) for count in filled])
    return math.fsum((one - other) * math.log(one / other) for one, other in zip(*shares, strict=True))


def psi_by_chance(counts_B: Sequence[int], reference_B: Sequence[int]) -> float:
    """What `psi` stays below in 19 cases of 20 if both come from the same images.

    Source: Yurdakul and Naranjo, "Statistical properties of the population stability index" (2020): psi is about chi-squared with B - 1
    degrees of freedom, times 1/n + 1/m.
    """
    freedom = sum(1 for one, other in zip(counts_B, reference_B, strict=True) if one or other) - 1
    scale = 1.0 / max(1, sum(counts_B)) + 1.0 / max(1, sum(reference_B))
    return scale * (freedom + CHANCE * math.sqrt(2.0 * max(0, freedom)))


def drift(tally: Tally, reference: DriftReference) -> dict[str, dict[str, Any]]:
    """For each signal its `psi`, the `by_chance` that it would stay below without drift, `images`, and whether it `shifted`."""
    classes = range(len(reference.predicted))
    observed = {"predicted": [tally.classes.get(index, 0) for index in classes], **tally.signals}
    expected = {"predicted": reference.predicted, **{name: getattr(reference, name).counts for name in tally.signals}}
    found = {}
    for signal, counts in observed.items():
        if sum(counts):
            value, chance = psi(counts, expected[signal]), psi_by_chance(counts, expected[signal])
            found[signal] = {
                "psi": round(value, 4),
                "by_chance": round(chance, 4),
                "images": sum(counts),
                "shifted": value > max(SHIFTED, chance),
            }
    return found


def summarise(tally: Tally, manifest: Manifest, *, model: str) -> dict[str, Any]:
    """The summary of a job, as it is written."""
    likeliest = sorted(tally.classes.items(), key=lambda entry: (-entry[1], entry[0]))
    return {
        "model": model,
        "images": tally.seen,
        "scored": tally.scored,
        "abstained": tally.abstained,
        "failed": tally.failed,
        "failures": dict(sorted(tally.codes.items())),
        "classes": {manifest.labels[index]: count for index, count in likeliest},
        "drift": drift(tally, manifest.reference),
    }
