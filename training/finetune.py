"""The phase of a run that trains whatever is not frozen, on augmented images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from models.architectures.network import Network
from models.manifest import PreprocessSpec
from training.config import TrainConfig
from training.data import Example
from training.failures import LossCheck
from training.images import evaluation_batches, network_input, normalised, train_loader
from training.optimisation import Learner, frozen_modules, parameter_groups, set_training
from training.progress import steps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Finetune:
    """Epochs over augmented images."""

    name = "train"

    def __init__(self, network: Network, train: Sequence[Example], val: Sequence[Example], config: TrainConfig, spec: PreprocessSpec) -> None:
        self.epochs, self.images = config.epochs, len(train)
        self._network, self._val, self._config, self._spec = network, val, config, spec
        self._device = next(network.parameters()).device
        self._loader = train_loader(train, config, spec)
        self._check = LossCheck("learning_rate", config.learning_rate, train, len(self._loader))
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        self._frozen = frozen_modules(network, config.freeze)
        for module in self._frozen:
            module.requires_grad_(requires_grad=False)
        self._mix = _mixing(config, num_classes=network.head.get_parameter("linear.weight").shape[0])
        self.learner = Learner(network, parameter_groups(network, config), config, batches=len(self._loader), epochs=config.epochs)

    @property
    def generator(self) -> torch.Generator:
        """Of the order of images."""
        generator = self._loader.generator
        assert isinstance(generator, torch.Generator)
        return generator

    def train(self, epoch: int, loss_of: nn.Module) -> float:
        """The mean loss of one epoch."""
        set_training(self._network, self._frozen, freeze_statistics=self._config.freeze_statistics)
        total, seen = 0.0, 0
        batches = steps(self._loader, total=len(self._loader), title=f"epoch {epoch}")
        for batch, (images_N3HW, labels_N, indices_N) in enumerate(batches):
            loss = self._loss(images_N3HW, labels_N, loss_of)
            total += self._check.require_finite(loss, epoch, batch, indices_N) * len(labels_N)
            self.learner.learn(loss, batch=batch)
            seen += len(labels_N)
        return total / seen

    @torch.inference_mode()
    def accuracy(self) -> float:
        """On the validation images."""
        judged = self.learner.judged.eval()
        correct, start = 0, 0
        for pixels_NHWC in evaluation_batches(self._val, self._spec, self._config.batch_size):
            predicted = judged(network_input(pixels_NHWC, self._device)).argmax(dim=1).tolist()
            correct += sum(index == example.label for index, example in zip(predicted, self._val[start : start + len(predicted)], strict=True))
            start += len(predicted)
        return correct / len(self._val)

    def trained(self) -> dict[str, Tensor]:
        """The part of the network's state that this phase changes: all of it."""
        return self._network.state_dict()

    def judged(self) -> dict[str, Tensor]:
        """The state of the network that `accuracy` has judged."""
        return self.learner.judged.state_dict()

    def _loss(self, images_N3HW: Tensor, labels_N: Tensor, loss_of: nn.Module) -> Tensor:
        images_N3HW, targets = normalised(images_N3HW.to(self._device)), labels_N.to(self._device)
        if self._mix is not None:
            images_N3HW, targets = self._mix(images_N3HW, targets)
        if self._config.channels_last:
            images_N3HW = images_N3HW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, DTYPES[self._config.precision], enabled=self._config.precision != "fp32"):
            logits_NK = self._network(images_N3HW)
        loss: Tensor = loss_of(logits_NK.float(), targets)
        return loss


def _mixing(config: TrainConfig, *, num_classes: int) -> v2.Transform | None:
    """What mixes the images and labels of a batch; then labels are shares [N,K]."""
    kinds: list[v2.Transform] = []
    if config.mixup > 0.0:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix > 0.0:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return v2.RandomChoice(kinds) if kinds else None
