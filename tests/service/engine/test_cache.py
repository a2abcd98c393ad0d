"""The cache: what is kept, for what, and how much of it."""

import asyncio

import numpy as np
import pytest
from prometheus_client import REGISTRY

from service.engine.cache import ENTRY_OVERHEAD_BYTES, AnswerCache
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S, in_s

ROW = 250
"""float32 values of one entry: 1000 bytes."""
ENTRY_BYTES = 4 * ROW + ENTRY_OVERHEAD_BYTES


def outputs(number: int) -> dict[str, np.ndarray]:
    return {"probabilities": np.full(ROW, number, dtype=np.float32)}


def key(number: int, **other: object):
    return AnswerCache.key(
        str(number).encode(), **{"model": "ants", "version": 1, "outputs": (), **other}
    )


def kept(cache: AnswerCache, numbers: range) -> list[int]:
    return [number for number in numbers if cache.get(key(number)) is not None]


def test_content_model_version_and_outputs_make_the_key():
    keys = {
        key(1),
        key(2),
        key(1, model="bees"),
        key(1, version=2),
        key(1, outputs=("embedding",)),
        key(1, outputs=("cam", "embedding")),
    }
    assert len(keys) == 6
    assert key(1, outputs=("embedding", "cam")) in keys, "the order of the outputs says nothing"


def test_what_was_not_asked_for_longest_goes_first():
    cache = AnswerCache(limit_bytes=3 * ENTRY_BYTES)
    for number in range(3):
        cache.put(key(number), outputs(number))
    assert cache.get(key(0))["probabilities"][0] == 0
    cache.put(key(3), outputs(3))
    assert kept(cache, range(4)) == [0, 2, 3]


def test_the_bound_is_in_bytes_and_replacing_counts_once():
    cache = AnswerCache(limit_bytes=2 * ENTRY_BYTES)
    for _ in range(5):
        cache.put(key(0), outputs(0))
    cache.put(key(1), outputs(1))
    assert kept(cache, range(2)) == [0, 1]
    cache.put(key(2), {"probabilities": np.zeros(10 * ROW, dtype=np.float32)})
    assert kept(cache, range(3)) == [0, 1], (
        "an entry above the bound is not kept, and drives nothing out"
    )


def test_a_row_does_not_keep_its_batch():
    cache = AnswerCache(limit_bytes=10 * ENTRY_BYTES)
    batch = np.zeros((64, ROW), dtype=np.float32)
    cache.put(key(0), {"probabilities": batch[3]})
    assert cache.get(key(0))["probabilities"].base is None


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Classifier:
    return Classifier.open(
        build_package(tmp_path_factory.mktemp("cache") / "tiny", labels=("ant", "bee", "cow")),
        threads=1,
    )


def test_an_image_sent_again_is_answered_without_the_model(opened):
    """With any `top_k`: the outputs are kept, not the answer."""
    encoded = (opened.model.path / "golden" / "0.png").read_bytes()
    seen = []

    async def test() -> None:
        cache = AnswerCache(limit_bytes=100_000)
        limits = {
            "decode_threads": 1,
            "max_batch_size": 2,
            "max_queue_delay_s": 0.0,
            "max_queue_size": 4,
        }
        pipeline = Pipeline(
            opened, cache=cache, observers=[lambda *saw: seen.append(saw)], **limits
        )
        async with asyncio.timeout(PATIENCE_S), pipeline:
            first = await pipeline.classify(encoded, top_k=3, deadline=in_s(PATIENCE_S))
            again = await pipeline.classify(encoded, top_k=1, deadline=in_s(PATIENCE_S))
            other = await pipeline.classify(
                encoded, top_k=1, deadline=in_s(PATIENCE_S), outputs=("embedding",)
            )
        assert again.classification.predictions == first.classification.predictions[:1]
        assert (first.timing.batch_size, again.timing.batch_size, other.timing.batch_size) == (
            1,
            0,
            1,
        )
        assert other.outputs.keys() == {"probabilities", "embedding"}

    hits = REGISTRY.get_sample_value("loupe_cache_requests_total", {"result": "hit"}) or 0.0
    asyncio.run(test())
    assert REGISTRY.get_sample_value("loupe_cache_requests_total", {"result": "hit"}) == hits + 1
    assert [encoded_seen == encoded for _, encoded_seen, _ in seen] == [True] * 3, (
        "observers see every answer"
    )
