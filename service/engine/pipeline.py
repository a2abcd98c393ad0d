"""The way of one image: looked up in the cache, or else admitted, run and answered.

Knows no transport.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import EmptyBody, NotReady, QueueFull, TooBusy
from service.engine.cache import AnswerCache
from service.engine.classifier import Classification, Classifier
from service.engine.lanes import Lanes
from service.engine.stages import Stages
from service.engine.tickets import (
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_QUEUE_BYTES,
    Outputs,
    Payload,
    PoolLimits,
    Timing,
)
from service.engine.worker_pool import WorkerPool
from service.observe.metrics import METRICS, PoolMetrics

OTHERS_PLACES = 4
"""A named client may have at most this many images for each free place of the queue.

Alone it fills four fifths of the queue, and one place in five is kept for others.
Source: dynamic thresholds of shared-memory switches (Choudhury and Hahne, 1998).
"""

Observer = Callable[[Classifier, bytes, Classification], None]
"""Called with the classifier, the encoded image and the answer, before the client gets it.

Must be quick."""


@dataclass(frozen=True)
class Result:
    """The answer for one image."""

    classification: Classification
    timing: Timing
    outputs: Outputs
    """The image's row of each output of the graph that was asked for, and of `probabilities`."""


class Pipeline:
    """Use as `async with`; leaving it answers what was accepted, then stops.

    With *lanes*, so many threads take each image from bytes to outputs (`lanes.py`), each pinned to
    its own of *lane_cpus* if there are any. Without, images go through stages (`stages.py`) with
    *decode_threads*, *max_queue_delay_s* and *max_in_flight*. *max_queue_size* bounds the images
    that wait, and *max_queue_bytes* their bytes. *decode_timeout_s* is the longest decode.

    An image that is in *cache* is answered without the model. *observers* see every answer.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        max_batch_size: int,
        max_queue_size: int,
        lanes: int = 0,
        lane_cpus: Sequence[int] = (),
        decode_threads: int = 1,
        max_queue_delay_s: float = 0.0,
        max_in_flight: int = 1,
        max_queue_bytes: int = DEFAULT_QUEUE_BYTES,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
        cache: AnswerCache | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.classifier = classifier
        self._max_queue_size = max_queue_size
        self._cache = cache
        self._observers = tuple(observers)
        self._waiting: Counter[str] = Counter()
        """Images of each client that wait or are at work."""
        limits = PoolLimits(max_batch_size, max_queue_bytes, decode_timeout_s)
        decode, run, metrics = classifier.decode, classifier.model.run, PoolMetrics()
        self._pool: WorkerPool = (
            Lanes(decode, run, lanes=lanes, limits=limits, metrics=metrics, cpus=lane_cpus)
            if lanes
            else Stages(
                decode,
                run,
                limits=limits,
                metrics=metrics,
                decode_threads=decode_threads,
                max_queue_delay_s=max_queue_delay_s,
                max_in_flight=max_in_flight,
            )
        )

    async def __aenter__(self) -> Pipeline:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._pool.__aexit__(*exc_info)

    def admit(self, *, deadline: float | None = None, client: str = "") -> None:
        """Raise what one more image would be refused with.

        Called before a body is read, and again before it is decoded.

        `QueueFull` if no more images may wait; also for a named *client* whose images already fill
        all of the queue but the part that is kept for others. `TooBusy` if its answer could not
        come before *deadline*, on the clock of `time.monotonic`. `NotReady` while closing.
        """
        if self._pool.is_closing:
            raise NotReady(
                "the service is shutting down; send the request to another instance",
                retry_after_s=1.0,
            )
        waiting = self._pool.depth
        wait_s = self._pool.expected_wait_s()
        if not waiting and not wait_s:
            return
        if waiting >= self._max_queue_size:
            raise QueueFull(
                f"{waiting} images wait already, the most allowed; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        if client and self._waiting[client] >= OTHERS_PLACES * (self._max_queue_size - waiting):
            raise QueueFull(
                f"{self._waiting[client]} of your images wait already; the rest of the queue is"
                f" kept for other clients; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        answer_s = self._pool.expected_answer_s()
        # A deadline that has passed already is the worker pool's to report.
        if deadline is not None and 0.0 < deadline - time.monotonic() < answer_s:
            raise TooBusy(
                f"an answer is expected in {answer_s:.1f} s, after the request's deadline; try"
                " again then",
                retry_after_s=wait_s,
            )

    async def classify(
        self,
        encoded: Payload,
        *,
        top_k: int,
        deadline: float,
        outputs: Sequence[str] = (),
        client: str = "",
        bulk: bool = False,
    ) -> Result:
        """The answer for one encoded image, with the graph's *outputs* beside its probabilities.

        Preprocessed pixels `uint8 [H,W,3]` are accepted too; they are neither cached nor observed.
        *deadline* is on the clock of `time.monotonic`. Clients take turns by the name *client*;
        *bulk* images let others pass. Raises `RequestError` for the image's fault, `Unavailable`
        for ours.
        """
        if len(encoded) == 0:
            raise EmptyBody(
                "the body has no bytes; send the image itself as the body, such as `curl"
                " --data-binary @photo.jpg`"
            )
        classifier, cache = self.classifier, self._cache
        names = tuple(dict.fromkeys(("probabilities", *outputs))) if outputs else ("probabilities",)
        key = None
        if cache is not None and isinstance(encoded, bytes):
            key = cache.key(
                encoded, model=classifier.name, version=classifier.version, outputs=names
            )
        kept = None if cache is None or key is None else cache.get(key)
        if kept is not None:
            classification = classifier.answer(kept["probabilities"], top_k=top_k)
            METRICS.predicted(classifier, classification)
            result = Result(classification, Timing(0.0, 0.0, 0.0, 0), kept)
        else:
            self.admit(deadline=deadline, client=client)
            self._waiting[client] += 1
            try:
                done = await self._pool.submit(
                    encoded, deadline=deadline, outputs=names, client=client, bulk=bulk
                )
            finally:
                self._waiting[client] -= 1
                if not self._waiting[client]:
                    del self._waiting[client]
            classification = classifier.answer(done.outputs["probabilities"], top_k=top_k)
            METRICS.answered(classifier, classification, done.timing)
            result = Result(classification, done.timing, done.outputs)
            if cache is not None and key is not None:
                cache.put(key, result.outputs)
        if isinstance(encoded, bytes):
            for observe in self._observers:
                observe(classifier, encoded, classification)
        return result
