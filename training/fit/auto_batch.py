"""The batch size that a GPU has memory for, found by trying."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch

from models.errors import TrainingError
from models.networks.network import Network
from models.package.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data.source import Example
from training.fit.finetune import Finetune
from training.fit.teacher import Teacher
from training.progress import CONSOLE

ON_CPU = 32
LARGEST = 1024
"""Larger batches train no faster on one GPU, and need another recipe."""
MEMORY_SHARE = 0.9
"""Of the GPU's memory; the rest is for what a run allocates now and then, as evaluation does."""


def largest_power(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest power of two up to *most* that *fits*, from 2; it is tried upwards, until one
    does not. Raises `TrainingError` if 2 does not.
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


def find_batch_size(
    config: TrainConfig,
    network: Network,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    teacher: Teacher | None,
    most: int,
) -> int:
    """Images that one process can take in a step: on a GPU the largest power of two up to *most*
    for which two steps fit into its memory.

    On a CPU nothing is tried: the memory of the machine is no limit that a process could probe
    without endangering its neighbours, and larger batches are no faster there.
    """
    device = next(network.parameters()).device
    if device.type == "cpu":
        CONSOLE.print(
            f"batch_size 0: on a CPU nothing is probed, batches of {min(ON_CPU, most)} are taken"
        )
        return min(ON_CPU, most)

    def fits(size: int) -> bool:
        return _fits(
            dataclasses.replace(config, batch_size=size, compile=False),
            network,
            examples,
            spec,
            teacher=teacher,
        )

    # What is tried must not change what the run draws afterwards.
    with torch.random.fork_rng(devices=[device]):
        size = largest_power(fits, most=min(most, LARGEST))
    CONSOLE.print(
        f"batch_size 0: batches of {size} fit into the memory of"
        f" {torch.cuda.get_device_name(device)}"
    )
    return size


def _fits(
    config: TrainConfig,
    network: Network,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    teacher: Teacher | None,
) -> bool:
    device = next(network.parameters()).device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        try_steps(config, network, examples, spec, teacher=teacher)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return (
        torch.cuda.max_memory_reserved(device)
        <= MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    )


def try_steps(
    config: TrainConfig,
    network: Network,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    teacher: Teacher | None,
) -> None:
    """Two whole steps on images of noise with a copy of *network*: the second has the optimiser's
    state in memory.
    """
    phase = Finetune(
        copy.deepcopy(network),
        examples,
        (),
        dataclasses.replace(config, accumulate=1),
        spec,
        teacher=teacher,
    )
    images_N3HW = torch.randint(
        0, 256, (config.batch_size, 3, config.image_size, config.image_size), dtype=torch.uint8
    )
    labels_N = torch.zeros(config.batch_size, dtype=torch.int64)
    for batch in range(2):
        phase.learner.learn(
            phase.loss(images_N3HW, labels_N, torch.nn.CrossEntropyLoss()), batch=batch
        )
