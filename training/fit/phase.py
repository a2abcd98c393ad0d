"""A phase of a run: what it trains, where its batches come from, and how it is judged.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.errors import DataError
from models.networks.network import Network
from training.config import TrainConfig
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.distributed import ALONE, Processes
from training.fit.failures import loss_not_finite
from training.fit.inputs import normalisation, preprocess_spec
from training.fit.optimisation import Learner
from training.fit.teacher import Teacher

MOST_CONFUSED = 5
MOST_CLASSES_COUNTED = 2000
"""With more classes the pairs that are confused are not counted: their table would be too large."""
READ_LOSS_EVERY = {"cpu": 1, "cuda": 20}
"""Batches between two reads of the loss, by kind of device. A read waits until a GPU has computed
all that it was given before."""


@dataclass(frozen=True)
class Judged:
    """What a phase says about the readable validation images of one process, on the CPU."""

    labels_N: Tensor
    answers_N: Tensor
    losses_N: Tensor
    """Cross-entropy of each image, without label smoothing, weights or a teacher."""


@dataclass(frozen=True)
class Validation:
    """How good an epoch is on the validation images of all processes."""

    accuracy: float
    loss: float
    """Mean cross-entropy."""
    images: int
    confused: tuple[tuple[str, str, int], ...]
    """The commonest mistakes: truth, answer and how many images; at most `MOST_CONFUSED`."""


class Phase(ABC):
    """Epochs of one kind: `Probe` trains the head, `Finetune` the network."""

    name: ClassVar[str]
    epochs_field: ClassVar[str]
    """Field of `TrainConfig` with the number of epochs."""
    rate_field: ClassVar[str]
    """Field of `TrainConfig` with the peak learning rate."""
    prefix: ClassVar[str] = ""
    """Of the names of the trained module's parameters in the network's state."""
    learner: Learner
    generator: torch.Generator
    """Draws the order of images."""
    batches: int
    """Number of batches in an epoch."""

    def __init__(
        self,
        network: Network,
        train: Sequence[Example],
        val: Sequence[Example],
        config: TrainConfig,
        *,
        processes: Processes = ALONE,
        teacher: Teacher | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Without a *quarantine*, the first image that breaks ends the run."""
        self.network, self.train, self.val, self.config = network, train, val, config
        self.processes, self.teacher = processes, teacher
        self.quarantine = quarantine or Quarantine("training", images=len(train) + len(val))
        self.spec = preprocess_spec(config)
        self.mean, self.std = normalisation(config)
        self.epochs: int = getattr(config, self.epochs_field)
        self.device = next(network.parameters()).device
        self.num_classes = network.head.get_parameter("linear.weight").shape[0]
        weights = class_weights(train, self.num_classes) if config.class_weights else None
        self.loss_of = nn.CrossEntropyLoss(
            weight=weights, label_smoothing=config.label_smoothing
        ).to(self.device)
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Make `learner`, `generator` and `batches`."""

    @abstractmethod
    def losses(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mean loss of each batch, with its gradient, and the places of its images, [N].

        The caller makes a step before it takes the next batch.
        """

    @abstractmethod
    def validate(self) -> Judged:
        """The answers to the readable validation images of this process."""

    def prepare(self) -> None:  # noqa: B027 - most phases have nothing to prepare
        """Do what comes before the first epoch, and takes time of its own."""

    def train_epoch(self, epoch: int) -> float:
        """The mean loss of one epoch, over all processes.

        Raises `TrainingError` if the loss is no longer finite.
        """
        total, seen = 0.0, 0
        unread: list[tuple[Tensor, Tensor]] = []
        for batch, (loss, places_N) in enumerate(self.losses(epoch)):
            unread.append((loss.detach(), places_N))
            if len(unread) == READ_LOSS_EVERY[self.device.type] or batch + 1 == self.batches:
                values = torch.stack([value for value, _ in unread]).tolist()
                for number, (value, (_, read_N)) in enumerate(
                    zip(values, unread, strict=True), batch + 2 - len(unread)
                ):
                    if not math.isfinite(value):
                        where = f"epoch {epoch}, batch {number} of {self.batches}"
                        names = [self.train[place].name for place in read_N.tolist()]
                        rate = getattr(self.config, self.rate_field)
                        raise loss_not_finite(value, where, self.rate_field, rate, names)
                    total, seen = total + value * len(read_N), seen + len(read_N)
                unread = []
            self.learner.learn(loss, batch=batch)
        sums = self.processes.summed(torch.tensor([total, seen], dtype=torch.float64))
        return float(sums[0] / sums[1])

    @torch.inference_mode()
    def validation(self, labels: Sequence[str]) -> Validation:
        """On the validation images that can be read; the same in every process.

        *labels* are the names of the classes. Raises `DataError` if no image can be read.
        """
        judged = self.validate()
        right_N = judged.labels_N == judged.answers_N
        sums = [right_N.sum(), judged.losses_N.double().sum(), len(right_N)]
        own = torch.tensor(sums, dtype=torch.float64)
        right, loss, images = self.processes.summed(own).tolist()
        if not images:
            raise DataError("none of the validation images can be read any longer")
        mistakes = self._confused(judged, labels)
        return Validation(right / images, loss / images, int(images), mistakes)

    def _confused(self, judged: Judged, labels: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
        classes = self.num_classes
        if classes > MOST_CLASSES_COUNTED:
            return ()
        cells_N = judged.labels_N * classes + judged.answers_N
        counts = self.processes.summed(torch.bincount(cells_N, minlength=classes**2))
        return confused(counts.reshape(classes, classes), labels)

    def gradient_norms(self) -> dict[str, float]:
        """The norms of the epoch's last step, with the network's names. See `Learner`."""
        return {
            f"{self.prefix}{name}".removesuffix("."): norm
            for name, norm in self.learner.gradient_norms.items()
        }

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The state of *module*, the trained one or its average, with the network's names."""
        return {f"{self.prefix}{key}": value for key, value in module.state_dict().items()}


def judged_of(logits_NK: Tensor, labels: Sequence[int]) -> Judged:
    """What *logits_NK* say about images of *labels*."""
    labels_N = torch.tensor(labels, dtype=torch.int64)
    losses_N = nn.functional.cross_entropy(logits_NK.float(), labels_N, reduction="none")
    return Judged(labels_N, logits_NK.argmax(dim=1), losses_N)


def confused(counts_KK: Tensor, labels: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    """The commonest mistakes of *counts_KK*, true classes by answers; most images first."""
    wrong_KK = counts_KK.clone().fill_diagonal_(0)
    cells = wrong_KK.flatten().argsort(descending=True, stable=True)[:MOST_CONFUSED].tolist()
    places = [divmod(cell, len(labels)) for cell in cells if wrong_KK.flatten()[cell]]
    return tuple((labels[k], labels[j], int(wrong_KK[k, j])) for k, j in places)


def class_weights(examples: Sequence[Example], num_classes: int) -> Tensor:
    """The inverse of each class's share of *examples*, [K]. The mean over *examples* is 1."""
    counts = Counter(example.label for example in examples)
    return torch.tensor(
        [len(examples) / (num_classes * max(1, counts[label])) for label in range(num_classes)]
    )
