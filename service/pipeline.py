"""The way of one image: admitted, decoded in a thread, batched, answered. Knows no transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DeadlineExceeded, EmptyBody, NotReady, QueueFull
from service.batcher import Batcher, Outputs
from service.classifier import Classification, Classifier
from service.metrics import METRICS


@dataclass(frozen=True)
class Timing:
    """Where the time of one image went, in seconds."""

    decode_s: float
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True)
class Result:
    """The answer for one image."""

    classification: Classification
    timing: Timing
    outputs: Outputs
    """The image's row of each output of the graph that was asked for, and of `probabilities`."""


class Pipeline:
    """Decoding and batching around a classifier. Use as `async with`; leaving it answers what was accepted.

    *max_queue_size* bounds the images that wait, for a decoding thread or for the model.
    """

    def __init__(self, classifier: Classifier, *, decode_threads: int, max_batch_size: int, max_queue_delay_s: float, max_queue_size: int) -> None:
        self.classifier = classifier
        self._max_queue_size = max_queue_size
        self._decoding = 0
        self._closing = False
        self._none_decoding = asyncio.Event()
        self._none_decoding.set()
        self._decoders = ThreadPoolExecutor(max_workers=decode_threads, thread_name_prefix="decode")
        self._batcher = Batcher(
            classifier.model.run,
            max_batch_size=max_batch_size,
            max_queue_delay_s=max_queue_delay_s,
            max_queue_size=max_queue_size,
            observer=METRICS,
        )

    async def __aenter__(self) -> Pipeline:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing = True
        # What is being decoded was accepted: the batcher may close only after it got that too.
        await self._none_decoding.wait()
        await self._batcher.__aexit__(*exc_info)
        self._decoders.shutdown(wait=True)

    def admit(self) -> None:
        """Raise `QueueFull` if no more images may wait, `NotReady` while closing. Asked before a body is read, and again before it is decoded."""
        if self._closing:
            raise NotReady("the service is shutting down; send the request to another instance", retry_after_s=1.0)
        waiting = self._decoding + self._batcher.depth
        if waiting >= self._max_queue_size:
            wait_s = self._batcher.expected_wait_s(self._decoding)
            raise QueueFull(f"{waiting} images wait already, the most allowed; try again in {wait_s:.1f} s", retry_after_s=wait_s)

    async def classify(self, encoded: bytes | NDArray[np.uint8], *, top_k: int, deadline: float, outputs: Sequence[str] = ()) -> Result:
        """The answer for one encoded image, with the graph's *outputs* beside its probabilities, and where its time went.

        Pixels `uint8 [H,W,3]`, preprocessed already, are taken as they are. *deadline* is on the clock of `time.monotonic`. Raises
        `RequestError` for the image's fault, `Unavailable` for ours.
        """
        if len(encoded) == 0:
            raise EmptyBody("the body has no bytes; send the image itself as the body, such as `curl --data-binary @photo.jpg`")
        self.admit()
        pixels_HWC, decode_s = (encoded, 0.0) if isinstance(encoded, np.ndarray) else await self._decode(encoded, deadline)
        answer = await self._batcher.submit(pixels_HWC, deadline=deadline, outputs=tuple(dict.fromkeys(("probabilities", *outputs))))
        classification = self.classifier.answer(answer.outputs["probabilities"], top_k=top_k)
        timing = Timing(decode_s, answer.queue_s, answer.inference_s, answer.batch_size)
        METRICS.answered(self.classifier, classification, timing)
        return Result(classification, timing, answer.outputs)

    async def _decode(self, encoded: bytes, deadline: float) -> tuple[NDArray[np.uint8], float]:
        self._decoding += 1
        self._none_decoding.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode_in_thread, encoded, deadline)
        finally:
            self._decoding -= 1
            if self._decoding == 0:
                # The waiter runs after the caller, which hands its pixels to the batcher without a pause.
                self._none_decoding.set()

    def _decode_in_thread(self, encoded: bytes, deadline: float) -> tuple[NDArray[np.uint8], float]:
        started = time.monotonic()
        if started >= deadline:
            raise DeadlineExceeded("the request's deadline passed before its image could be decoded", retry_after_s=1.0)
        pixels_HWC = self.classifier.decode(encoded)
        return pixels_HWC, time.monotonic() - started
