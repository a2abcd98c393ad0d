"""The transport-free core: encoded images in, labelled answers out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import (
    BadRequest,
    EmptyBody,
    PackageTampered,
    RequestError,
    UndecodableImage,
    UnknownModel,
)
from models.runtime.providers import ANY_SIZE
from models.store.store import Store
from service.engine.classifier import Classification, Classifier, _likeliest
from tests.models.packages import build_package, encode_png

LABELS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu")
SIZE = 8
ROUNDING = 1e-6
"""float32 sums of some dozen terms; a batch may add them in another order."""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return build_package(tmp_path_factory.mktemp("classifier") / "tiny", labels=LABELS, size=SIZE)


@pytest.fixture(scope="module")
def classifier(package: Path) -> Classifier:
    return Classifier.open(package, threads=1)


def photo(seed: int) -> bytes:
    """A PNG of just the model's size, so that its pixels reach the graph as they are."""
    return encode_png(pixels(seed))


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(SIZE, SIZE, 3), dtype=np.uint8)


def test_answers_are_the_graphs_probabilities_likeliest_first(classifier):
    (answer,) = classifier.classify([photo(1)], top_k=len(LABELS))
    (expected_K,) = classifier.model.sessions[ANY_SIZE].run(
        ["probabilities"], {"image": pixels(1)[np.newaxis]}
    )[0]
    assert [p.probability for p in answer.predictions] == pytest.approx(
        sorted(expected_K.tolist(), reverse=True), abs=ROUNDING
    )
    assert [p.label for p in answer.predictions] == [LABELS[i] for i in np.argsort(-expected_K)]
    assert [LABELS[p.index] for p in answer.predictions] == [p.label for p in answer.predictions]
    assert sum(p.probability for p in answer.predictions) == pytest.approx(1.0, abs=ROUNDING)


def test_many_images_get_the_answers_that_each_would_get_alone_in_any_order(classifier):
    photos = [photo(seed) for seed in range(9)]
    alone = [classifier.classify([image])[0] for image in photos]
    together = classifier.classify(photos)
    backwards = classifier.classify(photos[::-1])[::-1]
    for one, many, back in zip(alone, together, backwards, strict=True):
        for other in (many, back):
            assert [p.label for p in other.predictions] == [p.label for p in one.predictions]
            assert [p.probability for p in other.predictions] == pytest.approx(
                [p.probability for p in one.predictions], abs=ROUNDING
            )


def test_an_image_that_cannot_be_used_fails_alone(classifier):
    photos = [photo(1), b"", photo(2), b"plain text", photo(3)[:60], photo(3)]
    answers = classifier.classify(photos)
    assert [type(answer) for answer in answers] == [
        Classification,
        EmptyBody,
        Classification,
        UndecodableImage,
        UndecodableImage,
        Classification,
    ]
    good = [answer for answer in answers if not isinstance(answer, RequestError)]
    for found, expected in zip(
        good, classifier.classify([photo(1), photo(2), photo(3)]), strict=True
    ):
        assert [p.label for p in found.predictions] == [p.label for p in expected.predictions]
        assert [p.probability for p in found.predictions] == pytest.approx(
            [p.probability for p in expected.predictions], abs=ROUNDING
        )


@pytest.mark.parametrize("photos", [[], [b""], [b"x", b"y"]])
def test_without_a_usable_image_the_model_is_not_run(classifier, photos):
    assert [isinstance(answer, RequestError) for answer in classifier.classify(photos)] == [
        True
    ] * len(photos)


@pytest.mark.parametrize(
    ("top_k", "count"), [(1, 1), (3, 3), (len(LABELS), len(LABELS)), (1000, len(LABELS))]
)
def test_top_k_cuts_the_list(classifier, top_k, count):
    (answer,) = classifier.classify([photo(1)], top_k=top_k)
    assert len(answer.predictions) == count


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_one_is_refused(classifier, top_k):
    with pytest.raises(
        BadRequest, match=rf"^top_k is {top_k}; expected a whole number of 1 or more$"
    ):
        classifier.classify([photo(1)], top_k=top_k)


def test_equal_probabilities_keep_the_order_of_the_labels(classifier):
    answer = classifier.answer(
        np.full(len(LABELS), 1 / len(LABELS), dtype=np.float32), top_k=len(LABELS)
    )
    assert [p.label for p in answer.predictions] == list(LABELS)


@pytest.mark.parametrize(("highest", "abstained"), [(0.5999, True), (0.6, False), (0.7, False)])
def test_it_abstains_below_the_manifests_threshold(classifier, highest, abstained):
    manifest = classifier.manifest.model_copy(update={"abstain_threshold": float(np.float32(0.6))})
    careful = Classifier(
        dataclasses.replace(classifier.model, manifest=manifest), name="careful", version=1
    )
    probabilities_K = np.array([1 - highest, highest, 0, 0, 0, 0, 0], dtype=np.float32)
    assert careful.answer(probabilities_K, top_k=1).abstained is abstained


def test_a_package_folder_is_known_by_its_name_and_has_no_version(package):
    for reference in (package, str(package)):
        opened = Classifier.open(reference, threads=1)
        assert (opened.name, opened.version) == ("tiny", 0)


def test_a_model_of_the_store_is_found_by_name_alias_and_version(tmp_path, package):
    store = Store(tmp_path)
    store.publish(package, name="zoo")
    store.publish(package, name="zoo")
    found = [
        Classifier.open(reference, store=tmp_path, threads=1)
        for reference in ("zoo", "zoo@candidate", "zoo:2")
    ]
    assert [(one.name, one.version) for one in found] == [("zoo", 1), ("zoo", 2), ("zoo", 2)]
    with pytest.raises(UnknownModel, match=r"^no model 'zebra' in the store .*; it has zoo$"):
        Classifier.open("zebra", store=tmp_path)


def test_a_damaged_package_is_never_opened(tmp_path):
    folder = build_package(tmp_path / "damaged")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(PackageTampered, match=r"model\.onnx"):
        Classifier.open(folder)


@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=1, max_size=40), st.integers(1, 50)
)
def test_the_likeliest_are_those_of_a_whole_stable_sort(values, top_k):
    """Equals among them: the first of them comes first, and those beyond *top_k* do not come."""
    probabilities_K = np.array(values, dtype=np.float32)
    assert (
        _likeliest(probabilities_K, top_k)
        == np.argsort(-probabilities_K, kind="stable")[:top_k].tolist()
    )
