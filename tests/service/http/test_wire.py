"""The quick encoder of an answer gives what `json.dumps` gives, byte for byte."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.classifier import Classification, Classifier, Prediction
from service.http.answering import classification_body, model_body
from service.http.wire import answer_bytes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PROBABILITY = st.floats(0.0, 1.0, width=32)
MILLISECONDS = st.floats(0.0, 1e7).map(lambda value: round(value, 3))


def classifier_of(labels: list[str], *, name: str = "zoo", version: int = 3) -> Classifier:
    return Classifier(SimpleNamespace(manifest=SimpleNamespace(labels=tuple(labels))), name=name, version=version)


@given(
    labels=st.lists(TEXT, min_size=1, max_size=8),
    name=TEXT,
    version=st.integers(0, 10**9),
    probabilities=st.lists(PROBABILITY, max_size=8),
    abstained=st.booleans(),
    timing_ms=st.dictionaries(st.sampled_from(["read", "decode", "queue", "inference", "total"]), MILLISECONDS),
)
def test_the_bytes_are_those_of_json_dumps(labels, name, version, probabilities, abstained, timing_ms):
    classifier = classifier_of(labels, name=name, version=version)
    predictions = tuple(Prediction(label, index, value) for index, (label, value) in enumerate(zip(labels, probabilities, strict=False)))
    classification = Classification(predictions, abstained)
    document = {"model": model_body(classifier), **classification_body(classification), "request_id": "r-1", "timing_ms": timing_ms}
    expected = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    assert answer_bytes(classifier, classification, request_id="r-1", timing_ms=timing_ms) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_is_refused(value):
    classification = Classification((Prediction("ant", 0, 0.5), Prediction("bee", 1, value)), abstained=False)
    with pytest.raises(ValueError, match=r"^the model gave a probability that is no number$"):
        answer_bytes(classifier_of(["ant", "bee"]), classification, request_id="r-1", timing_ms={})
