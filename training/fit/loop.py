"""The training loop: takes a run through its phases, from its start or its last checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from models.errors import TrainingError
from training.config import TrainConfig
from training.data.index import read_index, write_index
from training.data.quarantine import QUARANTINE_FILE
from training.data.source import Dataset, by_reason, tell_added
from training.data.sources.dataset import aligned
from training.distributed import Processes, joined
from training.fit.checkpoint import (
    CHECKPOINT_FILE,
    Progress,
    copied,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from training.fit.failures import memory_advice
from training.fit.finetune import Finetune
from training.fit.inputs import preprocess_spec, settled
from training.fit.phase import Phase
from training.fit.preparation import Prepared, prepare
from training.fit.probe import Probe
from training.fit.time_left import TimeLeft
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
    """Train by *config*, and leave the weights with the best validation accuracy in *out*.

    With *resume*, continue the run in *out*: on a CPU bit for bit as if it had not ended.
    On a GPU it is the same run up to rounding: cuDNN adds in an order that may change. Under
    torchrun all its processes train one run, and only the main one writes. Raises `ConfigError`,
    `DataError`, or `TrainingError`: if the loss is no longer finite, memory runs out, or the run to
    resume is another one.
    """
    if resume and config.batch_size == 0:
        config = replace(config, batch_size=open_run(out).config.batch_size)
    config = settled(config)
    begun = read_index(out) if resume else ()
    if begun:
        # Photos and classes may have been added since; the run continues with its own.
        record = open_run(out).record
        tell_added(begun, dataset, record.unused_names)
        dataset = aligned(dataset, record.labels)
    with joined() as processes:
        prepared = prepare(config, dataset, processes, begun=begun)
        run = _open_run(prepared, out, resume=resume)
        if processes.shared(b"finished" if run.finished else b""):
            CONSOLE.print(f"{shown(str(run.path))} is finished: there is nothing to resume")
            return run
        try:
            with memory_advice(prepared.config, processes.device):
                return _train(run, prepared, tracking if processes.main else NOWHERE)
        except KeyboardInterrupt:
            CONSOLE.print(
                "interrupted; all complete epochs are saved. To continue: `loupe train --resume"
                f" --out {shown(str(run.path))}`"
            )
            raise


def _open_run(prepared: Prepared, out: Path, *, resume: bool) -> Run:
    """The run folder. The main process makes it or finds it again; the others write nothing."""
    config, processes, loaded = prepared.config, prepared.processes, prepared.loaded
    device = processes.device
    record = RunRecord(
        labels=prepared.dataset.labels,
        data=prepared.index.fingerprint(),
        unreadable=prepared.index.unreadable,
        unused=by_reason(prepared.dataset.unused),
        options=prepared.dataset.options,
        weights=loaded.kind,
        weights_identifier=loaded.identifier,
        weights_sha256=loaded.sha256,
        teacher_sha256=None if prepared.teacher is None else prepared.teacher.sha256,
        environment=Environment(
            provenance=provenance(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            processes=processes.count,
            threads=torch.get_num_threads(),
        ),
    )
    with processes.one_fate():
        if not processes.main:
            return Run(out, config, record)
        run = (resume_run if resume else create_run)(out, config, record)
        if not resume:
            write_index(out, prepared.index.entries)
        if not run.finished:
            prepared.quarantine.list_in(out)
        return run


def _train(run: Run, prepared: Prepared, tracking: Tracking) -> Run:
    """Train the phases of *run* that are not finished, then save the best weights."""
    config, processes = prepared.config, prepared.processes
    progress, checkpoint = read_checkpoint(run.path)
    _require_same_everywhere(progress, run, processes)
    kinds = [kind for kind in (Probe, Finetune) if getattr(config, kind.epochs_field)]
    while checkpoint and kinds[0].name != progress.phase:
        kinds.pop(0)
    before = config.probe_epochs if kinds[0] is Finetune else 0
    if processes.main:
        run.forget_after(before + progress.epochs)
    done = {kinds[0].name: progress.epochs}
    left = TimeLeft({k.name: getattr(config, k.epochs_field) - done.get(k.name, 0) for k in kinds})
    with tracking.open(run, epochs_done=before + progress.epochs) as log:
        for kind in kinds:
            phase = prepared.phase(kind)
            if checkpoint:
                restore(phase, checkpoint)
            else:
                progress = replace(progress, phase=kind.name, epochs=0, waited=0)
            progress, checkpoint = fit(phase, progress, run, log, left, before=before), {}
            before += phase.epochs
    if processes.main:
        run.save_weights(progress.best)
        run = _without_broken(run, prepared)
        (run.path / CHECKPOINT_FILE).unlink(missing_ok=True)
    return run


def fit(
    phase: Phase, progress: Progress, run: Run, log: Log, left: TimeLeft, *, before: int
) -> Progress:
    """The progress at the end of *phase*. The network then has the best weights.

    *left* is the time that the run takes yet, *before* the number of epochs of earlier phases. Each
    epoch is logged and saved.
    """
    if progress.epochs < phase.epochs:
        _prepare(phase, left)
    patience = run.config.patience if isinstance(phase, Finetune) else 0
    while progress.epochs < phase.epochs and not 0 < patience <= progress.waited:
        started, epoch = time.perf_counter(), before + progress.epochs + 1
        phase.quarantine.epoch = epoch
        loss = phase.train_epoch(epoch)
        trained_s = time.perf_counter() - started
        found = phase.validation(run.record.labels)
        phase.quarantine.settle(phase.processes)
        result = EpochResult(
            epoch,
            phase.name,
            loss,
            found.accuracy,
            phase.learner.head_rate,
            len(phase.train) / trained_s,
            time.perf_counter() - started,
            len(phase.quarantine.broken),
            gradient_norms=phase.gradient_norms(),
            val_loss=found.loss,
            val_images=found.images,
            confused=found.confused,
        )
        left.epoch_done(phase.name, result.seconds)
        if phase.processes.main:
            run.log(result)
        log(result)
        progress = progress.after(found.accuracy, phase.state(phase.learner.judged))
        save_checkpoint(run.path, progress, phase)
        _print_epoch(phase, result, left)
    phase.network.load_state_dict(progress.best, strict=False)
    return replace(progress, best=copied(phase.network.state_dict()))


def _prepare(phase: Phase, left: TimeLeft) -> None:
    """Compute what *phase* needs before its first epoch, and say how long that took."""
    started = time.perf_counter()
    phase.prepare()
    seconds = time.perf_counter() - started
    if isinstance(phase, Probe):
        left.features_done(phase.name, seconds)
        images = f"{len(phase.train) + len(phase.val):,} images"
        CONSOLE.print(f"features of {images}: computed in {short_time(seconds)}{left}")


def _print_epoch(phase: Phase, result: EpochResult, left: TimeLeft) -> None:
    """One line of at most 80 characters; more only if validation images broke."""
    broken = phase.quarantine.count("val")
    without = f" without {broken} broken images" if broken else ""
    CONSOLE.print(
        f"{phase.name} epoch {result.epoch}/{phase.config.probe_epochs + phase.config.epochs}"
        f"  loss {result.train_loss:.3f}  validation loss {result.val_loss:.3f},"
        f" accuracy {result.val_accuracy:.1%}{without}{left}"
    )


def _without_broken(run: Run, prepared: Prepared) -> Run:
    """*run*, whose record leaves out the images that broke during training. Export reads it."""
    broken = prepared.quarantine.broken
    if not broken:
        return run
    CONSOLE.print(
        f"[yellow]broken during training, and left out: {len(broken)}[/];"
        f" {shown(str(run.path / QUARANTINE_FILE))} lists them"
    )
    reasons = {name: reason for (_, name), reason in broken.items()}
    return run.with_data(prepared.index.fingerprint(broken), reasons)


def _require_same_everywhere(progress: Progress, run: Run, processes: Processes) -> None:
    """Raises `TrainingError` unless every process has read the main process's checkpoint."""
    own = f"{progress.phase} {progress.epochs}".encode()
    if processes.shared(own) != own:
        raise TrainingError(
            f"process {processes.rank} does not see the main process's checkpoint in {run.path}: "
            "to resume on several hosts, the run folder must lie where all of them can read it"
        )
