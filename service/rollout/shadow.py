"""The shadow: another version answers the same images, and the answers are compared."""

from __future__ import annotations

import random
from collections.abc import Callable

from models.errors import LoupeError
from service.engine.background import BackgroundThread
from service.engine.classifier import Classification, Classifier
from service.observe.metrics import SHADOW

WAITING = 8
"""Images that may wait for the shadow. They are held in memory as they were sent."""


class Shadow:
    """Compares a *share* of the answers with those of `candidate(name)`, in a background thread.

    Images that come faster than it works are dropped.
    """

    def __init__(self, candidate: Callable[[str], Classifier | None], *, share: float) -> None:
        self._candidate = candidate
        self._share = share
        self._thread = BackgroundThread("shadow", capacity=WAITING)

    def saw(self, classifier: Classifier, encoded: bytes, answered: Classification) -> None:
        """Compare the answer of *classifier* to *encoded*, if it is in the share."""
        candidate = self._candidate(classifier.name)
        if (
            candidate is None
            or candidate.version == classifier.version
            or random.random() >= self._share
        ):
            return
        top = answered.predictions[0].label
        if not self._thread.offer(lambda: _compare(candidate, encoded, top)):
            SHADOW.labels(classifier.name, "dropped").inc()

    def close(self) -> None:
        """Compare nothing more."""
        self._thread.close()


def _compare(candidate: Classifier, encoded: bytes, top: str) -> None:
    """Count whether *candidate* gives *top*.

    By label and not by index: the versions may order or name their classes differently.
    """
    (found,) = candidate.classify([encoded], top_k=1)
    agree = (
        "refused"
        if isinstance(found, LoupeError)
        else "yes"
        if found.predictions[0].label == top
        else "no"
    )
    SHADOW.labels(candidate.name, agree).inc()
