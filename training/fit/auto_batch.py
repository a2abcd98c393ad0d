"""Automatic batch size: the largest that fits into the memory of a GPU, found by trying."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch

from models.errors import TrainingError
from models.networks.network import Network
from training.config import TrainConfig
from training.data.source import Example
from training.fit.finetune import Finetune
from training.fit.teacher import Teacher
from training.progress import CONSOLE

ON_CPU = 32
LARGEST = 1024
"""Larger batches train no faster on one GPU, and need another recipe."""
MEMORY_SHARE = 0.9
"""Of the GPU's memory. The rest is for what a run allocates now and then, as evaluation does."""


def find_batch_size(
    config: TrainConfig,
    network: Network,
    examples: Sequence[Example],
    *,
    teacher: Teacher | None,
    most: int,
) -> int:
    """The number of images that one process can take in a step.

    On a GPU it is the largest power of two up to *most* for which two steps fit into memory. On a
    CPU nothing is tried. A process cannot probe the memory of a machine without endangering
    others, and larger batches are no faster there.
    """
    device = next(network.parameters()).device
    if device.type == "cpu":
        size = min(ON_CPU, most)
        CONSOLE.print(f"batch_size 0: on a CPU nothing is probed, batches of {size} are taken")
        return size

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        tried = dataclasses.replace(config, batch_size=size, compile=False)
        try:
            try_steps(tried, network, examples, teacher=teacher)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        memory = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) <= MEMORY_SHARE * memory

    # The search must not change what the run draws afterwards.
    with torch.random.fork_rng(devices=[device]):
        size = largest_power(fits, most=min(most, LARGEST))
    CONSOLE.print(
        f"batch_size 0: batches of {size} fit into the memory of"
        f" {torch.cuda.get_device_name(device)}"
    )
    return size


def largest_power(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest power of two up to *most* that *fits*.

    Sizes are tried upwards from 2, until one does not fit. Raises `TrainingError` if 2 does not.
    """
    size = 1
    while 2 * size <= most and fits(2 * size):
        size *= 2
    if size == 1:
        raise TrainingError(
            "out of memory with 2 images; try a smaller network or image_size, or --set"
            " precision=bf16"
        )
    return size


def try_steps(
    config: TrainConfig, network: Network, examples: Sequence[Example], *, teacher: Teacher | None
) -> None:
    """Make two steps on images of noise with a copy of *network*.

    The second step has the state of the optimiser in memory.
    """
    config = dataclasses.replace(config, accumulate=1)
    phase = Finetune(copy.deepcopy(network), examples, (), config, teacher=teacher)
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    images_N3HW = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels_N = torch.zeros(config.batch_size, dtype=torch.int64)
    for batch in range(2):
        phase.learner.learn(phase.loss(images_N3HW, labels_N), batch=batch)
