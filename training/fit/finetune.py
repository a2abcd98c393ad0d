"""The phase of a run that trains whatever is not frozen, on augmented images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2

from models.errors import DataError
from models.networks.network import Network
from models.package.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data.loader import network_input, normalised, readable_batches, train_loader
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.distributed import ALONE, Processes
from training.fit.failures import READ_LOSS_EVERY, LossCheck
from training.fit.optimisation import Learner, frozen_modules, parameter_groups, set_training
from training.fit.teacher import Teacher
from training.progress import steps

_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""Newer releases of torch warn about the older name."""
_NO_SYNC: Mapping[str, Any] = {_SYNC_BUFFERS: False}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Finetune:
    """Epochs over augmented images."""

    name = "train"

    def __init__(
        self,
        network: Network,
        train: Sequence[Example],
        val: Sequence[Example],
        config: TrainConfig,
        spec: PreprocessSpec,
        *,
        processes: Processes = ALONE,
        teacher: Teacher | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Without a *quarantine*, the first image that breaks ends the run."""
        self.epochs, self.images, self.processes = config.epochs, len(train), processes
        self._network, self._val, self._config, self._spec, self._teacher = (
            network,
            val,
            config,
            spec,
            teacher,
        )
        self._device = next(network.parameters()).device
        self._train, self._quarantine = (
            train,
            quarantine or Quarantine("training", images=len(train) + len(val)),
        )
        self._loader = train_loader(
            train, config, spec, quarantine=self._quarantine, processes=processes
        )
        every = READ_LOSS_EVERY[self._device.type]
        self.check = LossCheck(
            "learning_rate", config.learning_rate, train, len(self._loader), every=every
        )
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        self._frozen = frozen_modules(network, config.freeze)
        for module in self._frozen:
            module.requires_grad_(requires_grad=False)
        self._mix = _mixing(
            config, num_classes=network.head.get_parameter("linear.weight").shape[0]
        )
        self.learner = Learner(
            network,
            parameter_groups(network, config),
            config,
            batches=len(self._loader),
            epochs=config.epochs,
        )
        # Statistics of batch normalisation are averaged at the end of an epoch, before anybody
        # looks at them.
        self._parallel = (
            DistributedDataParallel(network, **_NO_SYNC) if processes.count > 1 else None
        )
        forward: Callable[[Tensor], Tensor] = self._parallel or network
        self._forward = torch.compile(forward) if config.compile else forward

    @property
    def generator(self) -> torch.Generator:
        """Of the order of images."""
        generator = self._loader.generator
        assert isinstance(generator, torch.Generator)
        return generator

    def losses(self, epoch: int, loss_of: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch of one epoch the mean loss and the places of its images; a step goes
        between two.
        """
        set_training(self._network, self._frozen, freeze_statistics=self._config.freeze_statistics)
        progress = steps(
            self._loader,
            total=len(self._loader),
            title=f"epoch {epoch}",
            images=min(self._config.batch_size, self.images),
        )
        for batch, (images_N3HW, labels_N, indices_N, broken) in enumerate(progress):
            for place, reason in broken.items():
                self._quarantine.add("train", self._train[place].name, reason)
            with self._exchange(batch):
                yield self.loss(images_N3HW, labels_N, loss_of), indices_N
        self.processes.average_(self._network.buffers())
        if self.learner.average is not None:
            self.processes.average_(self.learner.average.module.buffers())

    @torch.inference_mode()
    def accuracy(self) -> float:
        """On the validation images that can be read, of which each process looks at its share."""
        judged = self.learner.judged.eval()
        own = self._val[self.processes.rank :: self.processes.count]
        correct, seen = 0, 0
        for pixels_NHWC, places in readable_batches(
            own, self._spec, self._config.batch_size, split="val", quarantine=self._quarantine
        ):
            predicted = judged(network_input(pixels_NHWC, self._device)).argmax(dim=1).tolist()
            correct += sum(
                index == own[place].label for index, place in zip(predicted, places, strict=True)
            )
            seen += len(places)
        correct, seen = self.processes.summed(torch.tensor([correct, seen])).tolist()
        if not seen:
            raise DataError("none of the validation images can be read any longer")
        return float(correct / seen)

    def trained(self) -> dict[str, Tensor]:
        """The part of the network's state that this phase changes: all of it."""
        return self._network.state_dict()

    def judged(self) -> dict[str, Tensor]:
        """The state of the network that `accuracy` has judged."""
        return self.learner.judged.state_dict()

    def loss(self, images_N3HW: Tensor, labels_N: Tensor, loss_of: nn.Module) -> Tensor:
        """The mean loss of one batch of `uint8` images, which may lie anywhere."""
        images_N3HW = normalised(images_N3HW.to(self._device, non_blocking=True))
        targets = labels_N.to(self._device, non_blocking=True)
        if self._mix is not None:
            images_N3HW, targets = self._mix(images_N3HW, targets)
        if self._config.channels_last:
            images_N3HW = images_N3HW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            self._device.type,
            DTYPES[self._config.precision],
            enabled=self._config.precision != "fp32",
        ):
            logits_NK = self._forward(images_N3HW)
        loss: Tensor = loss_of(logits_NK.float(), targets)
        return (
            loss
            if self._teacher is None
            else self._teacher.mixed(loss, logits_NK.float(), images_N3HW)
        )

    def _exchange(
        self, batch: int
    ) -> AbstractContextManager[Any]:  # Any: torch's no_sync gives nothing
        """Gradients travel between processes where a step is made of them, and not before."""
        if self._parallel is None or self.learner.steps_after(batch):
            return nullcontext()
        return self._parallel.no_sync()


def _mixing(config: TrainConfig, *, num_classes: int) -> v2.Transform | None:
    """What mixes the images and labels of a batch; then labels are shares [N,K]."""
    kinds: list[v2.Transform] = []
    if config.mixup > 0.0:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix > 0.0:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return v2.RandomChoice(kinds) if kinds else None
