"""What a run says when it cannot go on: which batch, which images, and what to set instead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.errors import TrainingError
from training.config import TrainConfig
from training.data import Example

SHOWN_IMAGES = 8
ALLOCATION_FAILED = ("DefaultCPUAllocator", "out of memory")
"""Found in the message of the plain `RuntimeError` that torch raises when the memory of the CPU, or of a library on a GPU, is used up."""


class LossCheck:
    """Ends a run whose loss is no longer a number that can be followed."""

    def __init__(self, field: str, rate: float, examples: Sequence[Example], batches: int) -> None:
        """*rate* is the peak learning rate that the user set as *field*; an epoch has *batches*."""
        self._field, self._rate, self._examples, self._batches = field, rate, examples, batches

    def require_finite(self, loss: Tensor, epoch: int, batch: int, indices_N: Tensor) -> float:
        """The value of *loss*. Raises `TrainingError` naming the batch, from 0, and its images, by *indices_N* of the examples."""
        value = float(loss.item())
        if math.isfinite(value):
            return value
        names = [self._examples[index].name for index in indices_N.tolist()]
        more = f" and {len(names) - SHOWN_IMAGES} more" if len(names) > SHOWN_IMAGES else ""
        raise TrainingError(
            f"the loss became {value} in epoch {epoch}, batch {batch + 1} of {self._batches}; {self._field} is {self._rate:.2g}: "
            f"train again with {self._rate / 10:.1g}. The images of the batch: {', '.join(names[:SHOWN_IMAGES])}{more}"
        )


@contextmanager
def memory_advice(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Running out of memory inside becomes a `TrainingError` that says what to set."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(text in str(error) for text in ALLOCATION_FAILED):
            raise
        raise TrainingError(
            f"out of memory on {device} with batches of {config.batch_size} images of {config.image_size}x{config.image_size} pixels; "
            f"{_smaller(config)}"
        ) from error


def _smaller(config: TrainConfig) -> str:
    if config.batch_size < 4:
        return f"try a smaller network, or --set image_size={max(16, config.image_size // 2)}"
    half = f"--set batch_size={config.batch_size // 2} --set accumulate={2 * config.accumulate}"
    mixed = ", or --set precision=bf16" if config.precision == "fp32" else ""
    return f"try {half}, which makes steps of as many images{mixed}"
