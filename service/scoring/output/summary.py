"""What a job found, in numbers: classes, failures, and how far the images are from those that the
model was judged on.
"""

from __future__ import annotations

from typing import Any

from models.package.manifest import DriftReference, Manifest
from models.runtime.drift_signals import LEAST_IMAGES, SHIFTED, expected_counts, psi
from service.scoring.output.tally import Tally


def drift(tally: Tally, reference: DriftReference) -> dict[str, dict[str, Any]]:
    """For each signal its `psi` against *reference*, the number of `images`, and whether it
    `shifted`.
    """
    observed = {
        "predicted": [tally.classes.get(index, 0) for index in range(len(reference.predicted))],
        **tally.signals,
    }
    expected = expected_counts(reference)
    found = {}
    for signal, counts in observed.items():
        if sum(counts) and sum(expected[signal]):
            index, images = psi(expected[signal], counts), sum(counts)
            found[signal] = {
                "psi": round(index, 4),
                "images": images,
                "shifted": images >= LEAST_IMAGES and index > SHIFTED,
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
