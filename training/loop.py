"""A run: from a config and a data set to a run folder, through its phases, and on from wherever it was interrupted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape
from torch import nn

from models.architectures.catalogue import build
from models.architectures.network import Network
from models.architectures.weights import LoadedWeights, load_weights
from models.machine import threads_per_worker
from models.manifest import PreprocessSpec
from models.preprocess import DEFAULT_DCT_MARGIN
from training.checkpoint import Checkpoint, Phase, Progress, read_checkpoint, remove_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.data import Dataset, Example, fingerprint, without_unreadable
from training.failures import memory_advice
from training.finetune import Finetune
from training.images import limited
from training.optimisation import frozen_modules
from training.probe import Probe
from training.progress import CONSOLE
from training.run import EpochResult, Run, RunRecord, create_run, resume_run


def train(config: TrainConfig, dataset: Dataset, out: Path, *, resume: bool = False) -> Run:
    """Train as *config* says; the run folder *out* then holds the weights with the best validation accuracy.

    With *resume*, go on with the run in *out*, bit for bit as if it had not been interrupted. Raises `ConfigError`, `DataError`, or
    `TrainingError`: if the loss is no longer finite, memory runs out, or the run to resume is another one.
    """
    torch.manual_seed(config.seed)
    # torch counts the cores of the machine, not those that the cgroup leaves us; too many threads wait for each other at every barrier.
    torch.set_num_threads(threads_per_worker(1))
    dataset, unreadable = without_unreadable(dataset, preprocess_spec(config))
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {escape(f'{name}: {reason}')}")
    network = build(config.network, num_classes=len(dataset.labels), image_size=config.image_size)
    frozen_modules(network, config.freeze)
    loaded = load_weights(network, config.network, config.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _announce(config, dataset, loaded, device)
    record = RunRecord.of(dataset, loaded, fingerprint(dataset), unreadable)
    run = resume_run(out, config, record) if resume else create_run(out, config, record)
    if run.finished:
        CONSOLE.print(f"{escape(str(run.path))} is finished: there is nothing to resume")
        return run
    try:
        with memory_advice(config, device):
            _train(run, network.to(device), dataset)
    except KeyboardInterrupt:
        CONSOLE.print(f"interrupted; all whole epochs are saved. To go on: `loupe train --resume --out {escape(str(run.path))}`")
        raise
    return run


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """How the images of a run are prepared, in evaluation and ever after."""
    return PreprocessSpec(
        resize_size=config.resize_size,
        crop=(config.image_size, config.image_size),
        convert_icc=config.convert_icc,
        dct_margin=DEFAULT_DCT_MARGIN,
    )


def _train(run: Run, network: Network, dataset: Dataset) -> None:
    """Bring *run* from where it is to its end: the phases, then the weights."""
    config, spec = run.config, preprocess_spec(run.config)
    examples = limited(dataset.splits["train"], config.max_train_images)
    loss_of = _loss(config, examples, len(dataset.labels)).to(next(network.parameters()).device)
    checkpoint = read_checkpoint(run.path)
    progress = checkpoint.progress if checkpoint else Progress(phase="")
    for kind, before in _phases_from(progress.phase, config):
        stretch = _Stretch(run, network, kind(network, examples, dataset.splits["val"], config, spec), loss_of, before)
        progress = stretch.resume(checkpoint) if checkpoint else stretch.begin(progress)
        checkpoint = None
    run.save_weights(progress.best)
    remove_checkpoint(run.path)


def _phases_from(name: str, config: TrainConfig) -> list[tuple[type[Probe | Finetune], int]]:
    """The phases that are still to do, the one called *name* first, all for the empty name; and the epochs before each."""
    kinds: list[tuple[type[Probe | Finetune], int]] = [(Probe, 0)] if config.probe_epochs else []
    kinds += [(Finetune, config.probe_epochs)] if config.epochs else []
    return kinds if not name else kinds[[kind.name for kind, _ in kinds].index(name) :]


@dataclass(frozen=True)
class _Stretch:
    """One phase of one run."""

    run: Run
    network: Network
    phase: Phase
    loss_of: nn.Module
    before: int
    """Epochs of earlier phases."""

    def begin(self, earlier: Progress) -> Progress:
        """The progress at the end of the phase, whose best weights are then in the network."""
        if not earlier.phase:
            self.run.forget_after(0)
        return self._go_on(Progress(self.phase.name, best_accuracy=earlier.best_accuracy, best=earlier.best))

    def resume(self, checkpoint: Checkpoint) -> Progress:
        """As `begin`, from the middle of the phase."""
        checkpoint.restore(self.phase, self.network)
        self.run.forget_after(self.before + checkpoint.progress.epochs)
        return self._go_on(checkpoint.progress)

    def _go_on(self, progress: Progress) -> Progress:
        patience = self.run.config.patience if isinstance(self.phase, Finetune) else 0
        while progress.epochs < self.phase.epochs and not 0 < patience <= progress.waited:
            progress = self._epoch(progress)
        self.network.load_state_dict(progress.best, strict=False)
        return replace(progress, best={key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()})

    def _epoch(self, progress: Progress) -> Progress:
        """The progress after one more epoch, which is logged and saved."""
        epoch, started = self.before + progress.epochs + 1, time.perf_counter()
        loss = self.phase.train(epoch, self.loss_of)
        trained_s = time.perf_counter() - started
        accuracy = self.phase.accuracy()
        seconds = time.perf_counter() - started
        rate, images_per_s = self.phase.learner.head_rate, self.phase.images / trained_s
        self.run.log(EpochResult(epoch, self.phase.name, loss, accuracy, rate, images_per_s, seconds))
        total = self.run.config.probe_epochs + self.run.config.epochs
        CONSOLE.print(f"{self.phase.name} epoch {epoch}/{total}  loss {loss:.4f}  validation accuracy {accuracy:.2%}")
        progress = progress.after(accuracy, self.phase.judged())
        save_checkpoint(self.run.path, progress, self.phase)
        return progress


def _loss(config: TrainConfig, examples: Sequence[Example], num_classes: int) -> nn.Module:
    if not config.class_weights:
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    counts = Counter(example.label for example in examples)
    weights_K = torch.tensor([len(examples) / (num_classes * max(1, counts[label])) for label in range(num_classes)])
    return nn.CrossEntropyLoss(weight=weights_K, label_smoothing=config.label_smoothing)


def _announce(config: TrainConfig, dataset: Dataset, loaded: LoadedWeights, device: torch.device) -> None:
    counts = ", ".join(f"{len(examples)} {split}" for split, examples in dataset.splits.items())
    told = f"from {loaded.identifier} on {device}; {dataset.source}: {len(dataset.labels)} classes, {counts} images"
    CONSOLE.print(f"[bold]{config.network}[/] {escape(told)}")
