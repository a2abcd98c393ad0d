"""The probe phase: trains the head alone, on features that are computed once.

Letters used in shapes: N images, K classes, D embedding features, V views of an image: as it is,
and mirrored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from training.data.loader import network_input, readable_batches, sampler, stand_ins
from training.data.source import Example
from training.fit.optimisation import Learner, decayed_groups
from training.fit.phase import Judged, Phase, judged_of
from training.progress import steps

VALIDATION_BATCH = 4096


class Probe(Phase):
    """Epochs over features. All but the first cost next to nothing."""

    name = "probe"
    epochs_field = "probe_epochs"
    rate_field = "probe_learning_rate"
    prefix = "head."

    def _set_up(self) -> None:
        config = dataclasses.replace(self.config, precision="fp32", accumulate=1, ema_decay=0.0)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches = -(-len(self.train) // config.batch_size)
        head = self.network.head
        groups = decayed_groups(head.parameters(), config.probe_learning_rate, config.weight_decay)
        self.learner = Learner(head, groups, config, batches=self.batches, epochs=self.epochs)

    def losses(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mean loss and the places of each batch, in the main process alone.

        Every process computes its share of the features. The head is so small that the main process
        trains it for all.
        """
        del epoch
        features_NVD, read_N = self.features[0]
        if self.processes.main:
            labels_N = _labels(self.train)
            self.network.eval()
            self.network.head.train()
            balanced = self.config.balanced_sampling
            order = list(sampler(self.train, balanced=balanced, generator=self.generator))
            for places_N in torch.split(stand_ins(read_N)[order], self.config.batch_size):
                view_N = torch.randint(features_NVD.shape[1], (len(places_N),))
                logits_NK = self.network.head(features_NVD[places_N, view_N].to(self.device))
                yield self.loss_of(logits_NK, labels_N[places_N].to(self.device)), places_N
        self.processes.share_(self.network.head.state_dict().values())

    def prepare(self) -> None:
        """Compute the features."""
        assert self.features

    def validate(self) -> Judged:
        """Each process looks at its share of the validation images."""
        self.network.eval()
        features_NVD, read_N = self.features[1]
        own_N = read_N.nonzero().flatten()[self.processes.rank :: self.processes.count]
        logits = [
            self.network.head(chunk_ND.to(self.device)).cpu()
            for chunk_ND in torch.split(features_NVD[own_N, 0], VALIDATION_BATCH)
        ]
        return judged_of(torch.cat(logits), _labels(self.val)[own_N].tolist())

    @cached_property
    def features(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Features `float32 [N,V,D]` of the training and of the validation images.

        With each comes `bool [N]`: the image could be read. Otherwise its features are 0.
        """
        views = 2 if self.config.horizontal_flip else 1
        return self._embed("train", self.train, views), self._embed("val", self.val, 1)

    @torch.no_grad()
    def _embed(self, split: str, examples: Sequence[Example], views: int) -> tuple[Tensor, Tensor]:
        self.network.eval()
        own = range(self.processes.rank, len(examples), self.processes.count)
        size = self.config.batch_size
        features_NVD = torch.zeros(len(examples), views, self.network.head.embedding_size)
        read_N = torch.zeros(len(examples), dtype=torch.int64)
        batches = readable_batches(
            [examples[place] for place in own],
            self.spec,
            size,
            split=split,
            quarantine=self.quarantine,
        )
        for pixels_NHWC, among_own in steps(
            batches,
            total=-(-len(own) // size),
            title="features",
            images=size * self.processes.count,
        ):
            images_N3HW = network_input(pixels_NHWC, self.device)
            places = [own[place] for place in among_own]
            read_N[places] = 1
            for view, images in enumerate((images_N3HW, images_N3HW.flip(3))[:views]):
                features_NVD[places, view] = self.network.embed(images)[1].cpu()
        # Each place is 0 in all processes but one.
        return self.processes.summed(features_NVD), self.processes.summed(read_N) > 0


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])
