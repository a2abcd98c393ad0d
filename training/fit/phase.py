"""A stretch of epochs of one kind, and how an epoch is trained, whatever kind it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from training.distributed import Processes
from training.fit.failures import LossCheck
from training.fit.optimisation import Learner


class Phase(Protocol):
    """A stretch of epochs of one kind."""

    name: str
    epochs: int
    images: int
    """In an epoch, over all processes."""
    learner: Learner
    check: LossCheck
    processes: Processes

    @property
    def generator(self) -> torch.Generator:
        """Of the order of images."""

    def losses(self, epoch: int, loss_of: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch of one epoch the mean loss, a scalar with a gradient, and the places of its
        images, [N]; a step goes between two.
        """

    def accuracy(self) -> float:
        """On the validation images; the same in every process."""

    def trained(self) -> dict[str, Tensor]:
        """The part of the network's state that this phase changes."""

    def judged(self) -> dict[str, Tensor]:
        """The same part, as `accuracy` has judged it."""


def train_epoch(phase: Phase, epoch: int, loss_of: nn.Module) -> float:
    """The mean loss of one epoch of *phase*, over all processes.

    Raises `TrainingError` if it is no longer a number.
    """
    phase.check.begin(epoch)
    for batch, (loss, indices_N) in enumerate(phase.losses(epoch, loss_of)):
        phase.check.note(loss, indices_N)
        phase.learner.learn(loss, batch=batch)
    total, seen = phase.processes.summed(
        torch.tensor(phase.check.total(), dtype=torch.float64)
    ).tolist()
    return float(total / seen)
