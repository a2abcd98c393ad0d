"""The answer to a single image as bytes: what `json.dumps` makes of it, in less than half of its time. A test compares the two.

Labels, indices and the model are the same in every answer, so they are encoded once for each model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from weakref import WeakKeyDictionary

from service.engine.classifier import Classification, Classifier

_dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
"""As Starlette's `JSONResponse`, which writes all other answers."""


class _Known:
    """What the answers of one model have in common."""

    def __init__(self, classifier: Classifier) -> None:
        labels = classifier.manifest.labels
        self.head = f'{{"model":{{"name":{_dumps(classifier.name)},"version":{classifier.version}}},"predictions":['
        self.predictions = [f'{{"label":{_dumps(label)},"index":{index},"probability":' for index, label in enumerate(labels)]


_KNOWN: WeakKeyDictionary[Classifier, _Known] = WeakKeyDictionary()


def answer_bytes(classifier: Classifier, classification: Classification, *, request_id: str, timing_ms: Mapping[str, float]) -> bytes:
    """The body of the answer to one image. *request_id* is one that needs no escapes. Raises `ValueError` for what is no number in JSON."""
    known = _KNOWN.get(classifier)
    if known is None:
        known = _KNOWN[classifier] = _Known(classifier)
    # Of numbers that are none JSON has no notion; their sum is none either.
    if not math.isfinite(sum(one.probability for one in classification.predictions)):
        raise ValueError("the model gave a probability that is no number")
    predictions = ",".join([f"{known.predictions[index]}{probability!r}}}" for _, index, probability in classification.predictions])
    times = ",".join([f'"{name}":{milliseconds!r}' for name, milliseconds in timing_ms.items()])
    abstained = "true" if classification.abstained else "false"
    return f'{known.head}{predictions}],"abstained":{abstained},"request_id":"{request_id}","timing_ms":{{{times}}}}}'.encode()
