"""The way of a device that wants full batches: some threads decode, and what they decoded is
gathered for the model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import QueueFull
from service.engine.batcher import Batcher
from service.engine.decoding import Decoders
from service.engine.tickets import Decode, Done, Limits, Payload, Run, Timing, WorkObserver


class Stages:
    """A `Way` through *decode_threads* threads and a `Batcher`, which has *max_queue_delay_s*,
    *max_queue_size* and *max_in_flight*.
    """

    def __init__(
        self,
        decode: Decode,
        run: Run,
        *,
        limits: Limits,
        decode_threads: int,
        max_queue_delay_s: float,
        max_queue_size: int,
        max_in_flight: int,
        observer: WorkObserver | None = None,
    ) -> None:
        self._decode_image = decode
        self._max_queue_bytes = limits.max_queue_bytes
        self._encoded_bytes = 0
        self._own_s = 0.0
        """Measured time of one image apart from those before it."""
        self._batcher = Batcher(
            run,
            max_batch_size=limits.max_batch_size,
            max_queue_delay_s=max_queue_delay_s,
            max_queue_size=max_queue_size,
            max_queue_bytes=limits.max_queue_bytes,
            max_in_flight=max_in_flight,
            observer=observer,
            on_free=self._collect,
        )
        self._decoders = Decoders(
            threads=decode_threads,
            budget_s=limits.decode_timeout_s,
            on_busy=None if observer is None else observer.busy_changed,
            is_patient=lambda: self._batcher.is_occupied,
        )

    def _collect(self) -> None:
        self._decoders.collect()

    async def __aenter__(self) -> Stages:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # What is being decoded was accepted: the batcher may close only after it got that too.
        await self._decoders.drained()
        await self._batcher.__aexit__(*exc_info)
        self._decoders.close()

    @property
    def depth(self) -> int:
        """Images that wait, for a thread or for the model, or are being decoded."""
        return self._decoders.depth + self._batcher.depth

    def expected_wait_s(self) -> float:
        """Time until one more image would be begun by the model, from the measured times of a
        decode and of a run.
        """
        return self._decoders.expected_wait_s() + self._batcher.expected_wait_s(
            self._decoders.depth
        )

    def expected_answer_s(self) -> float:
        """Time until one more image would be answered."""
        return self.expected_wait_s() + self._own_s

    async def work(
        self,
        payload: Payload,
        *,
        deadline: float,
        outputs: tuple[str, ...],
        client: str,
        bulk: bool,
    ) -> Done:
        """The model's *outputs* for one image; see `Way.work`."""
        pixels_HWC, decode_s = (
            (payload, 0.0)
            if isinstance(payload, np.ndarray)
            else await self._decode(payload, deadline=deadline, client=client, bulk=bulk)
        )
        answer = await self._batcher.submit(
            pixels_HWC, deadline=deadline, outputs=outputs, client=client, bulk=bulk
        )
        # Its own decode and run, and the rest of the run that it finds under way.
        self._own_s += 0.1 * (decode_s + 2.0 * answer.inference_s - self._own_s)
        return Done(
            answer.outputs, Timing(decode_s, answer.queue_s, answer.inference_s, answer.batch_size)
        )

    async def _decode(
        self, encoded: bytes, *, deadline: float, client: str, bulk: bool
    ) -> tuple[NDArray[np.uint8], float]:
        # One image of any size is taken: otherwise it could never be answered.
        if self._encoded_bytes and self._encoded_bytes + len(encoded) > self._max_queue_bytes:
            wait_s = self.expected_wait_s()
            raise QueueFull(
                f"files of {self._encoded_bytes:,} bytes wait already and {self._max_queue_bytes:,}"
                f" may; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        self._encoded_bytes += len(encoded)
        try:
            return await self._decoders.decode(
                self._decode_image, encoded, deadline=deadline, client=client, bulk=bulk
            )
        finally:
            self._encoded_bytes -= len(encoded)
