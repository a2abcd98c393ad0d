"""The head alone, trained on features that are computed once.

Letters used in shapes: N images, K classes, D embedding features, V views of an image: as it is,
and mirrored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.errors import DataError
from models.networks.network import Network
from models.package.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data.loader import network_input, readable_batches, sampler, stand_ins
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.distributed import ALONE, Processes
from training.fit.failures import LossCheck
from training.fit.optimisation import Learner, decayed_groups
from training.progress import steps


class _Features(NamedTuple):
    """What the head is trained on."""

    values_NVD: Tensor
    """`float32`; 0 for an image that could not be read."""
    read_N: Tensor
    """`bool`: the image could be read."""


class Probe:
    """The phase of a run in which the features stand still: after its first epoch, one costs next
    to nothing.
    """

    name = "probe"

    def __init__(
        self,
        network: Network,
        train: Sequence[Example],
        val: Sequence[Example],
        config: TrainConfig,
        spec: PreprocessSpec,
        *,
        processes: Processes = ALONE,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Without a *quarantine*, the first image that breaks ends the run."""
        self._quarantine = quarantine or Quarantine("training", images=len(train) + len(val))
        self.epochs, self.images, self.processes = config.probe_epochs, len(train), processes
        self.generator = torch.Generator().manual_seed(config.seed)
        self._network, self._train, self._val, self._config, self._spec = (
            network,
            train,
            val,
            config,
            spec,
        )
        self._batches = -(-len(train) // config.batch_size)
        self.check = LossCheck(
            "probe_learning_rate", config.probe_learning_rate, train, self._batches
        )
        self._features: tuple[_Features, _Features] | None = None
        groups = decayed_groups(
            network.head.parameters(), config.probe_learning_rate, config.weight_decay
        )
        plain = dataclasses.replace(config, precision="fp32", accumulate=1, ema_decay=0.0)
        self.learner = Learner(
            network.head, groups, plain, batches=self._batches, epochs=self.epochs
        )

    def losses(self, epoch: int, loss_of: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch of one epoch the mean loss and the places of its images; a step goes
        between two.

        Every process computes its share of the features; the head is so small that the main process
        trains it alone, for all.
        """
        del epoch  # they are all alike
        train, labels_N = self._embeddings()[0], self._labels(self._train)
        if self.processes.main:
            self._network.eval()
            self._network.head.train()
            order = torch.tensor(
                list(
                    sampler(
                        self._train,
                        balanced=self._config.balanced_sampling,
                        generator=self.generator,
                    )
                )
            )
            for chosen_N in torch.split(stand_ins(train.read_N)[order], self._config.batch_size):
                view_N = torch.randint(train.values_NVD.shape[1], (len(chosen_N),))
                chosen_ND = train.values_NVD[chosen_N, view_N].to(self._device)
                yield (
                    loss_of(self._network.head(chosen_ND), labels_N[chosen_N].to(self._device)),
                    chosen_N,
                )
        self.processes.share_(self._network.head.state_dict().values())

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the validation images that can be read."""
        self._network.eval()
        val = self._embeddings()[1]
        if not val.read_N.any():
            raise DataError("none of the validation images can be read any longer")
        features_ND = val.values_NVD[val.read_N, 0]
        predicted_N = torch.cat(
            [
                self._network.head(chunk.to(self._device)).argmax(dim=1).cpu()
                for chunk in torch.split(features_ND, 4096)
            ]
        )
        return float((predicted_N == self._labels(self._val)[val.read_N]).double().mean())

    def trained(self) -> dict[str, Tensor]:
        """The part of the network's state that this phase changes."""
        return {f"head.{key}": value for key, value in self._network.head.state_dict().items()}

    def judged(self) -> dict[str, Tensor]:
        """The part of the network's state that `accuracy` has judged and that this phase changes."""
        return self.trained()

    @property
    def _device(self) -> torch.device:
        return next(self._network.parameters()).device

    @staticmethod
    def _labels(examples: Sequence[Example]) -> Tensor:
        return torch.tensor([example.label for example in examples])

    def _embeddings(self) -> tuple[_Features, _Features]:
        """Of the training images, V views, and of the validation images, one."""
        if self._features is None:
            self._features = (
                self._embed("train", self._train, mirrored=self._config.horizontal_flip),
                self._embed("val", self._val, mirrored=False),
            )
        return self._features

    @torch.no_grad()
    def _embed(self, split: str, examples: Sequence[Example], *, mirrored: bool) -> _Features:
        self._network.eval()
        size, own = (
            self._config.batch_size,
            range(self.processes.rank, len(examples), self.processes.count),
        )
        views = 2 if mirrored else 1
        found_NVD = torch.zeros(len(examples), views, self._network.head.embedding_size)
        read_N = torch.zeros(len(examples), dtype=torch.int64)
        batches = readable_batches(
            [examples[place] for place in own],
            self._spec,
            size,
            split=split,
            quarantine=self._quarantine,
        )
        progress = steps(
            batches,
            total=-(-len(own) // size),
            title="features",
            images=size * self.processes.count,
        )
        for pixels_NHWC, among_own in progress:
            images_N3HW, places = (
                network_input(pixels_NHWC, self._device),
                [own[place] for place in among_own],
            )
            read_N[places] = 1
            for view, images in enumerate((images_N3HW, images_N3HW.flip(3))[:views]):
                found_NVD[places, view] = self._network.embed(images)[1].cpu()
        # The others' places are 0 here, and ours are 0 there.
        return _Features(self.processes.summed(found_NVD), self.processes.summed(read_N) > 0)
