"""What a run says when it cannot go on: which batch, which images, and what to set instead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.errors import TrainingError
from training.config import TrainConfig
from training.data.source import Example

SHOWN_IMAGES = 8
ALLOCATION_FAILED = ("DefaultCPUAllocator", "out of memory")
"""Found in the message of the plain `RuntimeError` that torch raises when the memory of the CPU, or of a library on a GPU, is used up."""


COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
"""Where the errors of `torch.compile` are defined, all of them kinds of `RuntimeError`."""


class LossCheck:
    """Sums up the losses of an epoch, and ends a run whose loss is no longer a number that can be
    followed.
    """

    def __init__(
        self, field: str, rate: float, examples: Sequence[Example], batches: int, *, every: int = 1
    ) -> None:
        """*rate* is the peak learning rate that the user set as *field*; an epoch has *batches*;
        the losses are read *every* so many.
        """
        self._field, self._rate, self._examples, self._batches, self._every = (
            field,
            rate,
            examples,
            batches,
            every,
        )
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Forget the epoch before."""
        self._epoch, self._batch, self._sum, self._seen = epoch, 0, 0.0, 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def note(self, loss: Tensor, indices_N: Tensor) -> None:
        """Take the mean *loss* of the next batch, whose images are *indices_N* of the examples.

        To read a loss waits for the device that computes it, so a GPU is only asked now and then.
        Raises `TrainingError` for a loss that is not finite, naming its batch and images.
        """
        self._waiting.append((loss.detach(), indices_N))
        if len(self._waiting) >= self._every:
            self._read()

    def total(self) -> tuple[float, int]:
        """The sum of the losses of the epoch's images, and how many they were. Raises as `note`."""
        self._read()
        return self._sum, self._seen

    def _read(self) -> None:
        values = torch.stack([loss for loss, _ in self._waiting]).tolist() if self._waiting else []
        for value, (_, indices_N) in zip(values, self._waiting, strict=True):
            self._batch += 1
            if not math.isfinite(value):
                raise self._error(value, indices_N)
            self._sum += value * len(indices_N)
            self._seen += len(indices_N)
        self._waiting = []

    def _error(self, value: float, indices_N: Tensor) -> TrainingError:
        names = [self._examples[index].name for index in indices_N.tolist()]
        more = f" and {len(names) - SHOWN_IMAGES} more" if len(names) > SHOWN_IMAGES else ""
        return TrainingError(
            f"the loss became {value} in epoch {self._epoch}, batch {self._batch} of"
            f" {self._batches}; {self._field} is {self._rate:.2g}: train again with"
            f" {self._rate / 10:.1g}. The images of the batch:"
            f" {', '.join(names[:SHOWN_IMAGES])}{more}"
        )


READ_LOSS_EVERY = {"cpu": 1, "cuda": 20}
"""Batches from one look at the loss to the next, by the kind of device: each look costs a GPU the wait for what it was given before."""


@contextmanager
def memory_advice(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Running out of memory inside, or of what a compiler needs, becomes a `TrainingError` that
    says what to set.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if config.compile and type(error).__module__.startswith(COMPILER_MODULES):
            raise TrainingError(
                f"the network cannot be compiled here: {str(error).strip().splitlines()[0]}; train"
                " with --set compile=false"
            ) from error
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            text in str(error) for text in ALLOCATION_FAILED
        ):
            raise
        raise TrainingError(
            f"out of memory on {device} with batches of {config.batch_size} images of"
            f" {config.image_size}x{config.image_size} pixels; {_smaller(config)}"
        ) from error


def _smaller(config: TrainConfig) -> str:
    if config.batch_size < 4:
        return f"try a smaller network, or --set image_size={max(16, config.image_size // 2)}"
    half = f"--set batch_size={config.batch_size // 2} --set accumulate={2 * config.accumulate}"
    mixed = ", or --set precision=bf16" if config.precision == "fp32" else ""
    return f"try {half}, which makes steps of as many images{mixed}"
