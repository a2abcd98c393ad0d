"""A run: from a config and a data set to a run folder, through its phases, and on from wherever it
was interrupted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.errors import TrainingError
from models.networks.network import Network
from training.config import TrainConfig
from training.data.index import read_index, write_index
from training.data.quarantine import QUARANTINE_FILE, Quarantine
from training.data.source import Dataset, by_reason, tell_added
from training.data.sources.dataset import aligned
from training.distributed import Processes, joined
from training.fit.checkpoint import (
    Checkpoint,
    Progress,
    read_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from training.fit.failures import memory_advice
from training.fit.finetune import Finetune
from training.fit.phase import Phase, train_epoch
from training.fit.preparation import Prepared, prepare, preprocess_spec
from training.fit.probe import Probe
from training.progress import CONSOLE, short_time, shown
from training.runs.provenance import provenance
from training.runs.run import (
    Environment,
    EpochResult,
    Run,
    RunRecord,
    create_run,
    open_run,
    resume_run,
)
from training.runs.tracking import NOWHERE, TENSORBOARD, Log, Tracking

__all__ = ["preprocess_spec", "train"]


def train(
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = False,
    tracking: Tracking = TENSORBOARD,
) -> Run:
    """Train as *config* says; the run folder *out* then holds the weights with the best validation
    accuracy.

    With *resume*, go on with the run in *out*, bit for bit as if it had not been interrupted. Under
    torchrun all its processes train one run, and the main one alone writes. Raises `ConfigError`,
    `DataError`, or `TrainingError`: if the loss is no longer finite, memory runs out, or the run to
    resume is another one.
    """
    if resume and config.batch_size == 0:
        config = dataclasses.replace(config, batch_size=open_run(out).config.batch_size)
    begun = read_index(out) if resume else ()
    if begun:
        # Photos and classes may have been added since; the run goes on with its own.
        record = open_run(out).record
        tell_added(begun, dataset, record.unused_names)
        dataset = aligned(dataset, record.labels)
    with joined() as processes:
        prepared = prepare(config, dataset, processes, begun=begun)
        run = _run(prepared, out, resume=resume)
        if processes.shared(b"finished" if run.finished else b""):
            CONSOLE.print(f"{shown(str(run.path))} is finished: there is nothing to resume")
            return run
        try:
            with memory_advice(prepared.config, processes.device):
                return _train(run, prepared, tracking if processes.main else NOWHERE)
        except KeyboardInterrupt:
            CONSOLE.print(
                "interrupted; all whole epochs are saved. To go on: `loupe train --resume --out"
                f" {shown(str(run.path))}`"
            )
            raise


def _run(prepared: Prepared, out: Path, *, resume: bool) -> Run:
    """The run folder, begun or found again by the main process; the others know of it and write
    nothing.
    """
    teacher = prepared.teacher
    record = RunRecord.of(
        prepared.dataset.labels,
        prepared.loaded,
        prepared.data,
        unreadable=prepared.unreadable,
        unused=by_reason(prepared.dataset.unused),
        options=prepared.dataset.options,
        environment=_environment(prepared.processes),
        teacher_sha256=None if teacher is None else teacher.sha256,
    )
    run = Run(out, prepared.config, record)
    with prepared.processes.one_fate():
        if prepared.processes.main:
            run = (
                resume_run(out, prepared.config, record)
                if resume
                else create_run(out, prepared.config, record)
            )
            if not resume:
                write_index(out, prepared.inventory.entries)
            if not run.finished:
                prepared.quarantine.list_in(out)
    return run


def _environment(processes: Processes) -> Environment:
    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Environment(
        provenance=provenance(),
        device=name,
        processes=processes.count,
        threads=torch.get_num_threads(),
    )


def _train(run: Run, prepared: Prepared, tracking: Tracking) -> Run:
    """Bring *run* from where it is to its end: the phases, then the weights, and the record of what
    was left of the data.
    """
    processes, loss_of = prepared.processes, prepared.loss()
    checkpoint = read_checkpoint(run.path)
    _require_seen_by_all(checkpoint, run, processes)
    progress = checkpoint.progress if checkpoint else Progress(phase="")
    phases = _phases_from(progress.phase, prepared)
    with tracking.open(run, epochs_done=phases[0][1] + progress.epochs) as log:
        for make, before in phases:
            phase = make(
                prepared.network,
                prepared.examples,
                prepared.dataset.splits["val"],
                run.config,
                preprocess_spec(run.config),
            )
            stretch = _Stretch(
                run, prepared.network, phase, loss_of, before, log, prepared.quarantine
            )
            progress = stretch.resume(checkpoint) if checkpoint else stretch.begin(progress)
            checkpoint = None
    if processes.main:
        run.save_weights(progress.best)
        run = _without_broken(run, prepared)
        remove_checkpoint(run.path)
    return run


def _without_broken(run: Run, prepared: Prepared) -> Run:
    """*run*, whose record says what is left of its data if images broke on the way: by that it is
    exported.
    """
    broken = prepared.quarantine.broken
    if not broken:
        return run
    CONSOLE.print(
        f"[yellow]broken during training, and left out: {len(broken)}[/];"
        f" {shown(str(run.path / QUARANTINE_FILE))} lists them"
    )
    return run.with_data(
        prepared.inventory.fingerprint(broken),
        {name: reason for (_, name), reason in broken.items()},
    )


def _require_seen_by_all(checkpoint: Checkpoint | None, run: Run, processes: Processes) -> None:
    """Raises `TrainingError` unless every process has read the checkpoint that the main one has."""
    own = b"" if checkpoint is None else repr(checkpoint.progress.place).encode()
    if processes.shared(own) != own:
        raise TrainingError(
            f"process {processes.rank} does not see the main process's checkpoint in {run.path}: "
            "to resume on several hosts, the run folder must lie where all of them can read it"
        )


def _phases_from(name: str, prepared: Prepared) -> list[tuple[Callable[..., Phase], int]]:
    """What makes the phases that are still to do, the one called *name* first, all for the empty
    name; and the epochs before each.
    """
    config, processes = prepared.config, prepared.processes
    kinds: dict[str, tuple[Callable[..., Phase], int]] = {}
    if config.probe_epochs:
        kinds[Probe.name] = partial(Probe, processes=processes, quarantine=prepared.quarantine), 0
    if config.epochs:
        make = partial(
            Finetune, processes=processes, teacher=prepared.teacher, quarantine=prepared.quarantine
        )
        kinds[Finetune.name] = make, config.probe_epochs
    names = list(kinds)
    return [kinds[kind] for kind in names[names.index(name) if name else 0 :]]


@dataclass(frozen=True)
class _Stretch:
    """One phase, such as the probe, of a run that is being trained."""

    run: Run
    network: Network
    phase: Phase
    loss_of: nn.Module
    before: int
    """Epochs of earlier phases."""
    log: Log
    """What takes each epoch, besides the run's own metrics."""
    quarantine: Quarantine

    def begin(self, earlier: Progress) -> Progress:
        """The progress at the end of the phase, whose best weights are then in the network."""
        if not earlier.phase and self._main:
            self.run.forget_after(0)
        return self._go_on(
            Progress(self.phase.name, best_accuracy=earlier.best_accuracy, best=earlier.best)
        )

    def resume(self, checkpoint: Checkpoint) -> Progress:
        """As `begin`, from the middle of the phase."""
        checkpoint.restore(self.phase, self.network)
        if self._main:
            self.run.forget_after(self.before + checkpoint.progress.epochs)
        return self._go_on(checkpoint.progress)

    def _go_on(self, progress: Progress) -> Progress:
        patience = self.run.config.patience if isinstance(self.phase, Finetune) else 0
        while progress.epochs < self.phase.epochs and not 0 < patience <= progress.waited:
            progress = self._epoch(progress)
        self.network.load_state_dict(progress.best, strict=False)
        return replace(
            progress,
            best={
                key: value.detach().cpu().clone()
                for key, value in self.network.state_dict().items()
            },
        )

    def _judged_on(self) -> str:
        """Said where it is not all validation images."""
        lost = self.quarantine.count("val")
        return f" without {lost} broken images" if lost else ""

    @property
    def _main(self) -> bool:
        return self.phase.processes.main

    def _epoch(self, progress: Progress) -> Progress:
        """The progress after one more epoch, which is logged and saved."""
        epoch, started = self.before + progress.epochs + 1, time.perf_counter()
        self.quarantine.epoch = epoch
        loss = train_epoch(self.phase, epoch, self.loss_of)
        trained_s = time.perf_counter() - started
        accuracy = self.phase.accuracy()
        self.quarantine.settle(self.phase.processes)
        seconds = time.perf_counter() - started
        rate, images_per_s = self.phase.learner.head_rate, self.phase.images / trained_s
        if self._main:
            result = EpochResult(
                epoch,
                self.phase.name,
                loss,
                accuracy,
                rate,
                images_per_s,
                seconds,
                len(self.quarantine.broken),
            )
            self.run.log(result)
            self.log(result)
        progress = progress.after(accuracy, self.phase.judged())
        save_checkpoint(self.run.path, progress, self.phase)
        left_s = (self.phase.epochs - progress.epochs) * seconds
        speed = f"{images_per_s:.0f} images/s" + (
            f"  {short_time(left_s)} left of the {self.phase.name} epochs" if left_s >= 1.0 else ""
        )
        total = self.run.config.probe_epochs + self.run.config.epochs
        CONSOLE.print(
            f"{self.phase.name} epoch {epoch}/{total}  loss {loss:.4f}  validation accuracy"
            f" {accuracy:.2%}{self._judged_on()}  {speed}"
        )
        return progress
