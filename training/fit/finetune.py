"""The fine-tuning phase: trains every layer that is not frozen, on augmented images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from inspect import signature

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2

from training.data.loader import network_input, normalised, train_loader
from training.data.predict import Outputs, predict
from training.fit.optimisation import Learner, frozen_modules, parameter_groups, set_training
from training.fit.phase import Judged, Phase, judged_of
from training.progress import steps

SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""Newer releases of torch warn about the older name."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Finetune(Phase):
    """Epochs over augmented images."""

    name = "train"
    epochs_field = "epochs"
    rate_field = "learning_rate"

    def _set_up(self) -> None:
        network, config = self.network, self.config
        self._loader = train_loader(
            self.train, config, self.spec, quarantine=self.quarantine, processes=self.processes
        )
        self.batches = len(self._loader)
        assert isinstance(self._loader.generator, torch.Generator)
        self.generator = self._loader.generator
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        self._frozen = frozen_modules(network, config.freeze)
        for module in self._frozen:
            module.requires_grad_(requires_grad=False)
        mixing = [
            mix(alpha=alpha, num_classes=self.num_classes)
            for mix, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
            if alpha > 0.0
        ]
        self._mix = v2.RandomChoice(mixing) if mixing else None
        self.learner = Learner(
            network,
            parameter_groups(network, config),
            config,
            batches=self.batches,
            epochs=self.epochs,
        )
        # The statistics of batch normalisation are averaged once, at the end of an epoch.
        self._parallel = (
            DistributedDataParallel(network, **{SYNC_BUFFERS: False})  # type: ignore[arg-type]
            if self.processes.count > 1
            else None
        )
        forward: Callable[[Tensor], Tensor] = self._parallel or network
        self._forward = torch.compile(forward) if config.compile else forward

    def losses(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mean loss and the places of each batch. Broken images go into quarantine."""
        set_training(self.network, self._frozen, freeze_statistics=self.config.freeze_statistics)
        progress = steps(
            self._loader,
            total=self.batches,
            title=f"epoch {epoch}",
            images=min(self.config.batch_size, len(self.train)),
            rounds_left=self.config.probe_epochs + self.epochs - epoch,
        )
        for batch, (images_N3HW, labels_N, places_N, broken) in enumerate(progress):
            for place, reason in broken.items():
                self.quarantine.add("train", self.train[place].name, reason)
            # Processes exchange gradients only before a step.
            parallel = None if self.learner.steps_after(batch) else self._parallel
            with parallel.no_sync() if parallel else nullcontext():
                yield self.loss(images_N3HW, labels_N), places_N
        self.processes.average_(self.network.buffers())
        if self.learner.average is not None:
            self.processes.average_(self.learner.average.module.buffers())

    def validate(self) -> Judged:
        """Each process looks at its share of the validation images."""
        judged = self.learner.judged.eval()
        own = self.val[self.processes.rank :: self.processes.count]

        def run(pixels_NHWC: NDArray[np.uint8], _: Sequence[str]) -> Outputs:
            return {"logits": judged(network_input(pixels_NHWC, self.device)).cpu().numpy()}

        places, found = predict(
            run,
            own,
            self.spec,
            ("logits",),
            title="validate",
            batch_size=self.config.batch_size,
            split="val",
            quarantine=self.quarantine,
        )
        logits_NK = torch.from_numpy(found["logits"]) if places else torch.empty(0, 1)
        return judged_of(logits_NK, [own[place].label for place in places])

    def loss(self, images_N3HW: Tensor, labels_N: Tensor) -> Tensor:
        """The mean loss of one batch of `uint8` images on any device."""
        images_N3HW = normalised(images_N3HW.to(self.device, non_blocking=True))
        targets = labels_N.to(self.device, non_blocking=True)
        if self._mix is not None:
            images_N3HW, targets = self._mix(images_N3HW, targets)
        if self.config.channels_last:
            images_N3HW = images_N3HW.contiguous(memory_format=torch.channels_last)
        precision = self.config.precision
        with torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits_NK = self._forward(images_N3HW)
        loss: Tensor = self.loss_of(logits_NK.float(), targets)
        if self.teacher is None:
            return loss
        return self.teacher.mixed(loss, logits_NK.float(), images_N3HW)
