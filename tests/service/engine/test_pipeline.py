"""Decoding and batching together, without HTTP: what is admitted is answered, what is not costs
nothing.
"""

import asyncio
import dataclasses
import gc
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import (
    DeadlineExceeded,
    DecodeTimeout,
    EmptyBody,
    NotReady,
    QueueFull,
    TooBusy,
    UndecodableImage,
)
from models.runtime.providers import ANY_SIZE
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from tests.models.packages import build_package, encode_png
from tests.service.held import PATIENCE_S, in_s, until

LONG_S = 60.0
ROUNDING = 1e-6
"""float32 sums of some dozen terms; a batch may add them in another order."""


class HeldDecoder(Classifier):
    """A classifier whose decoding begins and ends when the test says so."""

    def __init__(self, opened: Classifier, *, held: bool) -> None:
        super().__init__(opened.model, name=opened.name, version=opened.version)
        self.decoded = 0
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        if not held:
            self.go.set()

    def decode(self, encoded: bytes) -> np.ndarray:
        self.begun.release()
        assert self.go.wait(PATIENCE_S), "the test never let the decoder go"
        self.decoded += 1
        return super().decode(encoded)

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE_S), "nothing was decoded"


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Classifier:
    package: Path = build_package(
        tmp_path_factory.mktemp("pipeline") / "tiny", labels=("ant", "bee", "cow")
    )
    return Classifier.open(package, threads=1)


def photo(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8))


@pytest.fixture(params=["lanes", "decode_threads"])
def pipeline(request) -> Callable[..., Pipeline]:
    """Makes a pipeline of so many threads; every test runs with lanes and with stages."""

    def make(
        classifier: Classifier, *, threads: int = 2, queue: int = 8, **limits: object
    ) -> Pipeline:
        return Pipeline(
            classifier, max_batch_size=4, max_queue_size=queue, **{request.param: threads}, **limits
        )

    return make


def drive(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(bounded())


def classify(target: Pipeline, encoded: bytes, *, deadline_s: float = LONG_S) -> asyncio.Task:
    return asyncio.create_task(target.classify(encoded, top_k=3, deadline=in_s(deadline_s)))


def test_each_of_many_images_gets_the_answer_that_it_gets_alone(opened, pipeline):
    async def test() -> None:
        photos = [photo(seed) for seed in range(12)]
        async with pipeline(opened, queue=12) as target:
            found = await asyncio.gather(*[classify(target, image) for image in photos])
        for image, result in zip(photos, found, strict=True):
            answer, timing = result.classification, result.timing
            (expected,) = opened.classify([image], top_k=3)
            assert [p.label for p in answer.predictions] == [p.label for p in expected.predictions]
            assert [p.probability for p in answer.predictions] == pytest.approx(
                [p.probability for p in expected.predictions], abs=ROUNDING
            )
            assert min(timing.decode_s, timing.queue_s, timing.inference_s) >= 0.0
            assert 1 <= timing.batch_size <= 4

    drive(test)


def test_outputs_that_were_asked_for_come_beside_the_probabilities(opened, pipeline):
    async def test() -> None:
        async with pipeline(opened) as target:
            result = await target.classify(
                photo(1), top_k=1, deadline=in_s(LONG_S), outputs=("embedding",)
            )
        expected = opened.model.run(
            opened.decode(photo(1))[np.newaxis], ("embedding", "probabilities")
        )
        assert result.outputs.keys() == {"probabilities", "embedding"}
        for name, value in result.outputs.items():
            np.testing.assert_allclose(value, expected[name][0], atol=ROUNDING)

    drive(test)


def test_an_image_that_cannot_be_decoded_fails_alone(opened, pipeline):
    async def test() -> None:
        async with pipeline(opened) as target:
            good, bad, empty = await asyncio.gather(
                *[classify(target, body) for body in (photo(1), b"text", b"")],
                return_exceptions=True,
            )
        assert len(good.classification.predictions) == 3
        assert isinstance(bad, UndecodableImage)
        assert isinstance(empty, EmptyBody)
        assert (
            str(empty) == "the body has no bytes; send the image itself as the body, such as `curl"
            " --data-binary @photo.jpg`"
        )

    drive(test)


def test_images_that_wait_for_a_decoder_count_as_waiting(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1, queue=3) as target:
            target.admit()
            tasks = [classify(target, photo(seed)) for seed in range(3)]
            await asyncio.to_thread(held.wait_begun)
            with pytest.raises(
                QueueFull, match=r"^3 images wait already, the most allowed; try again in \d\.\d s$"
            ) as full:
                target.admit()
            assert full.value.retry_after_s > 0.0
            with pytest.raises(QueueFull):
                await target.classify(photo(4), top_k=1, deadline=in_s(LONG_S))
            held.go.set()
            assert len(await asyncio.gather(*tasks)) == 3
            target.admit()
        assert held.decoded == 3

    drive(test)


def test_an_image_whose_deadline_passes_while_it_waits_for_a_decoder_is_never_decoded(
    opened, pipeline
):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1) as target:
            first = classify(target, photo(1))
            await asyncio.to_thread(held.wait_begun)
            late = classify(target, photo(2), deadline_s=-1.0)
            held.go.set()
            with pytest.raises(
                DeadlineExceeded,
                match=r"^no answer within the deadline; the image waited 0\.0 s$",
            ):
                await late
            await first
        assert held.decoded == 1

    drive(test)


def test_a_cancelled_caller_makes_room(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1, queue=2) as target:
            first = classify(target, photo(1))
            await asyncio.to_thread(held.wait_begun)
            leaver = classify(target, photo(2))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                target.admit()
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            target.admit()
            held.go.set()
            await first
        assert held.decoded == 1

    drive(test)


def test_leaving_answers_the_images_that_are_being_decoded_and_those_that_wait_for_it(
    opened, pipeline
):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        target = await pipeline(held, threads=1).__aenter__()
        tasks = [classify(target, photo(seed)) for seed in range(3)]
        await asyncio.to_thread(held.wait_begun)
        closing = asyncio.create_task(target.__aexit__(None, None, None))
        await asyncio.sleep(0)
        for refused in (classify(target, photo(9)), classify(target, b"text")):
            with pytest.raises(
                NotReady,
                match=r"^the service is shutting down; send the request to another instance$",
            ):
                await refused
        held.go.set()
        found = await asyncio.gather(*tasks)
        await closing
        for seed, result in enumerate(found):
            assert (
                result.classification.predictions[0].label
                == opened.classify([photo(seed)])[0].predictions[0].label
            )

    drive(test)


def test_a_failure_of_the_model_reaches_its_caller(opened, pipeline):
    async def test() -> None:
        class Broken:
            """A session that fails."""

            def run(self, *_: object) -> None:
                raise RuntimeError("no memory")

        broken = Classifier(
            dataclasses.replace(opened.model, sessions={ANY_SIZE: Broken()}),
            name="broken",
            version=1,
        )
        async with pipeline(broken) as target:
            with pytest.raises(RuntimeError, match=r"^no memory$"):
                await target.classify(photo(1), top_k=1, deadline=in_s(LONG_S))
            target.admit()

    drive(test)


def test_a_client_cannot_take_the_places_that_are_kept_for_others(opened, pipeline):
    """Of ten places a named client has eight at most; a client without a name is nobody to be fair
    to.
    """

    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1, queue=10) as target:
            tasks = [
                asyncio.create_task(
                    target.classify(photo(seed), top_k=1, deadline=in_s(LONG_S), client="many")
                )
                for seed in range(8)
            ]
            await asyncio.to_thread(held.wait_begun)
            with pytest.raises(
                QueueFull,
                match=(
                    r"^8 of your images wait already; the rest of the queue is kept for"
                    r" other clients; try again in"
                    r" \d\.\d s$"
                ),
            ) as refused:
                target.admit(client="many")
            assert refused.value.retry_after_s == pytest.approx(target._pool.expected_wait_s())
            target.admit(client="one")
            target.admit()
            held.go.set()
            await asyncio.gather(*tasks)
            target.admit(client="many")

    drive(test)


def test_what_could_not_be_answered_in_time_is_refused_at_once(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1) as target:
            task = classify(target, photo(1))
            await asyncio.to_thread(held.wait_begun)
            wait_s = target._pool.expected_wait_s()
            assert wait_s > 0.0
            target.admit(deadline=in_s(LONG_S))
            with pytest.raises(
                TooBusy,
                match=(
                    r"^an answer is expected in 0\.0 s, after the request's deadline; try again"
                    r" then$"
                ),
            ) as refused:
                target.admit(deadline=in_s(wait_s / 2))
            assert refused.value.retry_after_s == pytest.approx(wait_s)
            held.go.set()
            await task
            # The caller may be answered before its thread has come to rest.
            await until(lambda: target._pool.expected_wait_s() == 0.0)
            target.admit(deadline=in_s(wait_s / 2))

    drive(test)


def test_an_image_that_could_begin_in_time_but_not_end_is_refused(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        async with pipeline(held, threads=1) as target:
            task = classify(target, photo(1))
            await asyncio.to_thread(held.wait_begun)
            target._pool.expected_answer_s = lambda: LONG_S
            with pytest.raises(
                TooBusy, match=rf"^an answer is expected in {LONG_S:g}\.\d s, after"
            ):
                target.admit(deadline=in_s(LONG_S / 2))
            held.go.set()
            await task

    drive(test)


def test_files_that_wait_are_bounded_in_bytes(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        size = len(photo(1))
        bounded = pipeline(held, threads=1, max_queue_bytes=size)
        async with bounded as target:
            task = classify(target, photo(1))
            await asyncio.to_thread(held.wait_begun)
            with pytest.raises(
                QueueFull,
                match=(
                    rf"^waiting images hold {size} of {size} bytes; try again in"
                    r" 0\.0 s$"
                ),
            ):
                await classify(target, photo(2))
            held.go.set()
            await task

    drive(test)


def test_a_decode_past_its_budget_is_the_images_own_failure(opened, pipeline):
    async def test() -> None:
        held = HeldDecoder(opened, held=True)
        bounded = pipeline(held, threads=1, decode_timeout_s=0.02)
        async with bounded as target:
            with pytest.raises(DecodeTimeout, match=r"was not decoded within 0\.02 s"):
                await classify(target, photo(1))
            held.go.set()
            result = await classify(target, photo(2))
            assert (
                result.classification.predictions[0].label
                == opened.classify([photo(2)])[0].predictions[0].label
            )

    drive(test)


def test_an_image_that_fails_is_forgotten_at_once_and_not_when_the_collector_comes(
    opened, pipeline
):
    """Workers of a server that gets many damaged photos would hold half as much memory again."""

    gone: list[int] = []

    class Photo(bytes):
        """Bytes whose end is seen."""

        def __del__(self) -> None:
            gone.append(1)

    async def fails(target: Pipeline) -> None:
        with pytest.raises(UndecodableImage):
            await target.classify(Photo(photo(1)[:60]), top_k=1, deadline=in_s(LONG_S))

    async def test() -> None:
        async with pipeline(opened) as target:
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await fails(target)
                # The event loop and the threads let go of their last call only once the next one
                # comes.
                await target.classify(photo(2), top_k=1, deadline=in_s(LONG_S))
                assert len(gone) == 5
            finally:
                gc.enable()

    drive(test)
