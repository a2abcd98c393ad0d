"""Drift in the summary of a job: the project's one index, and an alarm only where the numbers allow
one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from models.package.manifest import Histogram
from models.runtime.drift_signals import psi
from service.scoring.output.tally import Tally, drift

COUNTS = Histogram(edges=(0.0, 0.5, 1.0), counts=(500, 500))
REFERENCE = SimpleNamespace(
    predicted=(600, 400),
    confidence=COUNTS,
    brightness=COUNTS,
    sharpness=COUNTS,
    embedding_distance=COUNTS,
)


def test_the_summary_has_the_index_that_the_service_has():
    found = drift(
        Tally(classes={0: 20, 1: 180}, signals={"confidence": [100, 100], "brightness": [0, 0]}),
        REFERENCE,
    )
    assert found["predicted"] == {
        "psi": round(psi([600, 400], [20, 180]), 4),
        "images": 200,
        "shifted": True,
    }
    assert found["confidence"] == {
        "psi": pytest.approx(0.0, abs=1e-4),
        "images": 200,
        "shifted": False,
    }
    assert "brightness" not in found


def test_a_handful_of_images_is_no_alarm():
    found = drift(Tally(classes={1: 99}), REFERENCE)
    assert found["predicted"]["psi"] > 0.25
    assert not found["predicted"]["shifted"]
