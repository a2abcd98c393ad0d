"""Errors that end a training run, with what to set instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from models.errors import TrainingError
from training.config import TrainConfig

SHOWN_IMAGES = 8
ALLOCATION_FAILED = ("DefaultCPUAllocator", "out of memory")
"""In the message of the plain `RuntimeError` that torch raises when memory is used up: that of the
CPU, or of a library on a GPU."""
COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
"""Modules that define the errors of `torch.compile`. All are kinds of `RuntimeError`."""


def loss_not_finite(
    loss: float, where: str, rate_field: str, rate: float, names: Sequence[str]
) -> TrainingError:
    """The error for a *loss* that is not finite. *names* are the images of its batch."""
    more = f" and {len(names) - SHOWN_IMAGES} more" if len(names) > SHOWN_IMAGES else ""
    return TrainingError(
        f"the loss became {loss} in {where}; {rate_field} is {rate:.2g}: train again with"
        f" {rate / 10:.1g}. The images of the batch: {', '.join(names[:SHOWN_IMAGES])}{more}"
    )


@contextmanager
def memory_advice(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turns a lack of memory or an error of the compiler into a `TrainingError` with advice."""
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
