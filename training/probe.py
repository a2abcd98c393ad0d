"""The head alone, trained on features that are computed once.

Letters used in shapes: N images, K classes, D embedding features, V views of an image: as it is, and mirrored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.architectures.network import Network
from models.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data import Example
from training.failures import LossCheck
from training.images import evaluation_batches, network_input, sampler
from training.optimisation import Learner, decayed_groups
from training.processes import ALONE, Processes
from training.progress import steps


class Probe:
    """The phase of a run in which the features stand still: after its first epoch, one costs next to nothing."""

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
    ) -> None:
        self.epochs, self.images, self.processes = config.probe_epochs, len(train), processes
        self.generator = torch.Generator().manual_seed(config.seed)
        self._network, self._train, self._val, self._config, self._spec = network, train, val, config, spec
        self._batches = -(-len(train) // config.batch_size)
        self.check = LossCheck("probe_learning_rate", config.probe_learning_rate, train, self._batches)
        self._features: tuple[Tensor, Tensor] | None = None
        groups = decayed_groups(network.head.parameters(), config.probe_learning_rate, config.weight_decay)
        plain = dataclasses.replace(config, precision="fp32", accumulate=1, ema_decay=0.0)
        self.learner = Learner(network.head, groups, plain, batches=self._batches, epochs=self.epochs)

    def losses(self, epoch: int, loss_of: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch of one epoch the mean loss and the places of its images; a step goes between two.

        Every process computes its share of the features; the head is so small that the main process trains it alone, for all.
        """
        del epoch  # they are all alike
        features_NVD, labels_N = self._embeddings()[0], self._labels(self._train)
        if self.processes.main:
            self._network.eval()
            self._network.head.train()
            order = torch.tensor(list(sampler(self._train, balanced=self._config.balanced_sampling, generator=self.generator)))
            for chosen_N in torch.split(order, self._config.batch_size):
                view_N = torch.randint(features_NVD.shape[1], (len(chosen_N),))
                chosen_ND = features_NVD[chosen_N, view_N].to(self._device)
                yield loss_of(self._network.head(chosen_ND), labels_N[chosen_N].to(self._device)), chosen_N
        self.processes.share_(self._network.head.state_dict().values())

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the validation images."""
        self._network.eval()
        features_ND = self._embeddings()[1][:, 0]
        predicted_N = torch.cat([self._network.head(chunk.to(self._device)).argmax(dim=1).cpu() for chunk in torch.split(features_ND, 4096)])
        return float((predicted_N == self._labels(self._val)).double().mean())

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

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Of the training images, `float32 [N,V,D]`, and of the validation images, `float32 [N,1,D]`."""
        if self._features is None:
            self._features = self._embed(self._train, mirrored=self._config.horizontal_flip), self._embed(self._val, mirrored=False)
        return self._features

    @torch.no_grad()
    def _embed(self, examples: Sequence[Example], *, mirrored: bool) -> Tensor:
        self._network.eval()
        size, places = self._config.batch_size, range(self.processes.rank, len(examples), self.processes.count)
        views = 2 if mirrored else 1
        found_NVD = torch.zeros(len(examples), views, self._network.head.embedding_size)
        batches = evaluation_batches([examples[place] for place in places], self._spec, size)
        progress = steps(batches, total=-(-len(places) // size), title="features", images=size * self.processes.count)
        for batch, pixels_NHWC in enumerate(progress):
            images_N3HW = network_input(pixels_NHWC, self._device)
            own = places[batch * size : (batch + 1) * size]
            for view, images in enumerate((images_N3HW, images_N3HW.flip(3))[:views]):
                found_NVD[list(own), view] = self._network.embed(images)[1].cpu()
        # The others' places are 0 here, and ours are 0 there.
        return self.processes.summed(found_NVD)
