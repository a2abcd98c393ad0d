"""The way of one image: admitted, decoded in a thread, batched, answered. Knows no transport."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import EmptyBody, NotReady, QueueFull, TooBusy
from service.batcher import DEFAULT_QUEUE_BYTES, Batcher, Outputs
from service.classifier import Classification, Classifier
from service.decoding import Decoders
from service.metrics import METRICS

DEFAULT_DECODE_TIMEOUT_S = 5.0
OTHERS_PLACES = 4
"""A named client may have at most this many images for each free place of the queue: alone it fills four fifths of it, and one place in
five is there for whoever comes next. Source: dynamic thresholds of shared-memory switches (Choudhury and Hahne, 1998)."""


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
    """Use as `async with`; leaving it answers what was accepted, then stops.

    *max_queue_size* bounds the images that wait, for a decoding thread or for the model; *max_queue_bytes* their encoded bytes and their
    pixels, each. *decode_timeout_s* is the longest decode, *max_in_flight* the batches that run at a time.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        decode_threads: int,
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queue_size: int,
        max_queue_bytes: int = DEFAULT_QUEUE_BYTES,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
        max_in_flight: int = 1,
    ) -> None:
        self.classifier = classifier
        self._max_queue_size = max_queue_size
        self._max_queue_bytes = max_queue_bytes
        self._encoded_bytes = 0
        self._closing = False
        self._own_s = 0.0
        """Measured time of one image apart from those before it."""
        self._waiting: Counter[str] = Counter()
        """Images of each client that wait or are at work."""
        self._batcher = Batcher(
            classifier.model.run,
            max_batch_size=max_batch_size,
            max_queue_delay_s=max_queue_delay_s,
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            max_in_flight=max_in_flight,
            observer=METRICS.batches(),
            on_free=self._collect,
        )
        self._decoders = Decoders(
            threads=decode_threads,
            budget_s=decode_timeout_s,
            on_busy=METRICS.decoders_busy,
            is_patient=lambda: self._batcher.is_occupied,
        )

    def _collect(self) -> None:
        self._decoders.collect()

    async def __aenter__(self) -> Pipeline:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing = True
        # What is being decoded was accepted: the batcher may close only after it got that too.
        await self._decoders.drained()
        await self._batcher.__aexit__(*exc_info)
        self._decoders.close()

    def expected_wait_s(self) -> float:
        """Time until one more image would be answered, from the measured times of a decode and of the model."""
        return self._decoders.expected_wait_s() + self._batcher.expected_wait_s(self._decoders.depth)

    def admit(self, *, deadline: float | None = None, client: str = "") -> None:
        """Raise what one more image would be refused with. Asked before a body is read, and again before it is decoded.

        `QueueFull` if no more images may wait; also for a named *client* whose images already fill all of the queue but the part that is
        kept for others. `TooBusy` if its answer could not come before *deadline*, on the clock of `time.monotonic`. `NotReady` while closing.
        """
        if self._closing:
            raise NotReady("the service is shutting down; send the request to another instance", retry_after_s=1.0)
        waiting = self._decoders.depth + self._batcher.depth
        if not waiting:
            return
        wait_s = self.expected_wait_s()
        if waiting >= self._max_queue_size:
            raise QueueFull(f"{waiting} images wait already, the most allowed; try again in {wait_s:.1f} s", retry_after_s=wait_s)
        if client and self._waiting[client] >= OTHERS_PLACES * (self._max_queue_size - waiting):
            raise QueueFull(
                f"{self._waiting[client]} of your images wait already; the places left are for others; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        answer_s = wait_s + self._own_s
        # One that has passed already is for the decoders to tell.
        if deadline is not None and 0.0 < deadline - time.monotonic() < answer_s:
            raise TooBusy(f"an answer is expected in {answer_s:.1f} s, after the request's deadline; try again then", retry_after_s=wait_s)

    async def classify(
        self, encoded: bytes | NDArray[np.uint8], *, top_k: int, deadline: float, outputs: Sequence[str] = (), client: str = "", bulk: bool = False
    ) -> Result:
        """The answer for one encoded image, with the graph's *outputs* beside its probabilities, and where its time went.

        Pixels `uint8 [H,W,3]`, preprocessed already, are taken as they are.
        *deadline* is on the clock of `time.monotonic`. Clients take turns by the name *client*; *bulk* images let others pass. Raises
        `RequestError` for the image's fault, `Unavailable` for ours.
        """
        if len(encoded) == 0:
            raise EmptyBody("the body has no bytes; send the image itself as the body, such as `curl --data-binary @photo.jpg`")
        self.admit(deadline=deadline, client=client)
        self._waiting[client] += 1
        try:
            pixels_HWC, decode_s = (
                (encoded, 0.0) if isinstance(encoded, np.ndarray) else await self._decode(encoded, deadline, client=client, bulk=bulk)
            )
            names = tuple(dict.fromkeys(("probabilities", *outputs))) if outputs else ("probabilities",)
            answer = await self._batcher.submit(pixels_HWC, deadline=deadline, outputs=names, client=client, bulk=bulk)
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
        classification = self.classifier.answer(answer.outputs["probabilities"], top_k=top_k)
        timing = Timing(decode_s, answer.queue_s, answer.inference_s, answer.batch_size)
        # Its own decode and run, and the rest of the run that it finds under way.
        self._own_s += 0.1 * (decode_s + 2.0 * answer.inference_s - self._own_s)
        METRICS.answered(self.classifier, classification, timing)
        return Result(classification, timing, answer.outputs)

    async def _decode(self, encoded: bytes, deadline: float, *, client: str, bulk: bool) -> tuple[NDArray[np.uint8], float]:
        # One image of any size is taken: otherwise it could never be answered.
        if self._encoded_bytes and self._encoded_bytes + len(encoded) > self._max_queue_bytes:
            wait_s = self.expected_wait_s()
            raise QueueFull(
                f"files of {self._encoded_bytes:,} bytes wait already and {self._max_queue_bytes:,} may; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        self._encoded_bytes += len(encoded)
        try:
            return await self._decoders.decode(self.classifier.decode, encoded, deadline=deadline, client=client, bulk=bulk)
        finally:
            self._encoded_bytes -= len(encoded)
