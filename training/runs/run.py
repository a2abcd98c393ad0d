"""The folder of a run: `config.json`, `run.json`, `metrics.jsonl`, `weights.safetensors`.

The weights are written when the run is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import TrainingError
from models.files import parse_json, read_file, read_text
from models.messages import os_error_text
from models.package.manifest import DataFingerprint, Lineage, Provenance, StrictRecord
from training.config import TrainConfig, config_from_json
from training.data.source import SourceOptions

CONFIG_FILE = "config.json"
RECORD_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
WEIGHTS_FILE = "weights.safetensors"


class Environment(StrictRecord):
    """Where, by what code and with which releases a run was begun.

    It decides nothing: a run may be resumed elsewhere.
    """

    provenance: Provenance
    device: str
    """Such as `cpu` or `NVIDIA H100 80GB HBM3`."""
    processes: int
    """That train together."""
    threads: int
    """Of each process."""


class RunRecord(StrictRecord):
    """What a run was made from. Class order is frozen here."""

    labels: tuple[str, ...]
    data: DataFingerprint
    """What the run was begun with; once it is finished, without what broke on the way."""
    unreadable: dict[str, str]
    """Images left out, with the reason."""
    unused: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Files, folders and rows of the source that are no images of the run: reason -> names."""
    options: SourceOptions = SourceOptions()
    """How the source was read."""
    weights: str
    weights_identifier: str
    weights_sha256: str | None
    teacher_sha256: str | None
    """Of the graph of the package that it learns from; None without one."""
    environment: Environment

    @property
    def unused_names(self) -> tuple[str, ...]:
        """What was no image of the run when it was begun."""
        return tuple(name for names in self.unused.values() for name in names)

    def lineage(self, run: Run) -> Lineage:
        """Where the weights of a package made from *run* came from."""
        return Lineage.model_validate(
            {
                "weights": self.weights,
                "identifier": self.weights_identifier,
                "sha256": self.weights_sha256,
                "run": run.path.name,
                "seed": run.config.seed,
                "teacher_sha256": self.teacher_sha256,
            }
        )


@dataclass(frozen=True)
class EpochResult:
    """One line of `metrics.jsonl`."""

    epoch: int
    """From 1, through all phases."""
    phase: str
    """`probe`: the head on features computed once; `train`: all that is not frozen."""
    train_loss: float
    val_accuracy: float
    learning_rate: float
    """At the end of the epoch."""
    images_per_s: float
    """Of training alone."""
    seconds: float
    """Of training and validation, without the features of the probe."""
    broken: int = 0
    """Images that could no longer be read at the end of the epoch. The accuracy is over the
    rest."""
    gradient_norms: dict[str, float] = field(default_factory=dict)
    """By module: the norm of its gradient in the last step of the epoch, before clipping.

    Frozen modules have none."""
    val_loss: float | None = None
    """Mean cross-entropy on validation images, without label smoothing, weights or a teacher. None
    in runs of older releases."""
    val_images: int = 0
    """Validation images that could be read."""
    confused: tuple[tuple[str, str, int], ...] = ()
    """The commonest mistakes on them: truth, answer, images; most images first."""


@dataclass(frozen=True)
class Run:
    """An open run folder."""

    path: Path
    config: TrainConfig
    record: RunRecord

    def log(self, result: EpochResult) -> None:
        """Append one epoch to the metrics."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:  # Any: JSON
        """Every epoch so far. Raises `TrainingError` if the file is damaged."""
        path = self.path / METRICS_FILE
        try:
            lines = map(parse_json, read_text(path).splitlines() if path.is_file() else ())
            return [asdict(EpochResult(**line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{path} is damaged: {error}; remove {self.path} and train again"
            ) from error

    def kept(self) -> dict[str, Any] | None:  # Any: JSON
        """The epoch whose weights the run keeps: the best so far, the later of equals."""
        found = self.metrics()
        return max(found, key=lambda line: (line["val_accuracy"], line["epoch"]), default=None)

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of epochs after *epoch*: a resumed run trains them again."""
        if (path := self.path / METRICS_FILE).is_file():
            kept = (line for line in self.metrics() if line["epoch"] <= epoch)
            _replace(path, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def finished(self) -> bool:
        """It has its weights: there is nothing to resume."""
        return (self.path / WEIGHTS_FILE).is_file()

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """Write the trained weights, whole or not at all."""
        partial = self.path / f"{WEIGHTS_FILE}.partial"
        save_file({key: value.contiguous() for key, value in state.items()}, partial)
        partial.replace(self.path / WEIGHTS_FILE)

    def with_data(self, data: DataFingerprint, broken: Mapping[str, str]) -> Run:
        """The same run, whose record says that *data* is left without the images *broken*.

        *broken* maps names to reasons. The record is written.
        """
        record = self.record.model_copy(
            update={"data": data, "unreadable": {**self.record.unreadable, **broken}}
        )
        _replace(self.path / RECORD_FILE, record.model_dump_json(indent=1) + "\n")
        return replace(self, record=record)

    def load_weights(self) -> dict[str, Tensor]:
        """The trained weights. Raises `TrainingError` for a run that has not finished."""
        path = self.path / WEIGHTS_FILE
        if not path.is_file():
            raise TrainingError(
                f"run {self.path} has no {WEIGHTS_FILE}: it was not finished; continue it with"
                f" `loupe train --resume --out {self.path}`"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise TrainingError(f"{path} is damaged: {error}; train again") from error


def create_run(path: Path, config: TrainConfig, record: RunRecord) -> Run:
    """A new run folder.

    Raises `TrainingError` if there is something at *path* already: nothing is overwritten.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise TrainingError(
                f"run folder {path} is not empty; choose another --out, continue it with --resume,"
                " or remove it"
            )
        (path / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        (path / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write run folder {os_error_text(error, path)}") from error
    return Run(path, config, record)


def _replace(path: Path, text: str) -> None:
    """Write *text* to *path*, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def resume_run(path: Path, config: TrainConfig, record: RunRecord) -> Run:
    """The run in folder *path*, to be continued.

    Raises `TrainingError` if it was begun by another config than *config*, or has another *record*.
    """
    run = open_run(path)
    then, now = asdict(run.config) | _comparable(run.record), asdict(config) | _comparable(record)
    if differing := "; ".join(
        f"{name} was {then[name]} and is now {now[name]}"
        for name in then
        if then[name] != now[name]
    ):
        raise TrainingError(
            f"run {path} cannot continue, because it was started differently: {differing}. Put that"
            " back, or choose another --out"
        )
    return run


def _comparable(record: RunRecord) -> dict[str, object]:
    """What must not change when a run is resumed, under names that a person knows."""
    return {
        "the order of classes": ", ".join(record.labels),
        "the number of images": record.data.splits,
        "the SHA-256 over all images": record.data.sha256,
        "the SHA-256 of the initial weights": record.weights_sha256,
        "the SHA-256 of the teacher": record.teacher_sha256,
        "the number of processes": record.environment.processes,
    }


def open_run(path: Path) -> Run:
    """The run in folder *path*. Raises `TrainingError` if it is none."""
    try:
        config = config_from_json(read_file(path / CONFIG_FILE), origin=str(path / CONFIG_FILE))
        record = RunRecord.model_validate_json(read_file(path / RECORD_FILE))
    except OSError as error:
        raise TrainingError(f"{path} is not a run folder: {os_error_text(error)}") from error
    except ValidationError as error:
        raise TrainingError(
            f"{path / RECORD_FILE}: {error.errors()[0]['msg']}; train again"
        ) from error
    return Run(path, config, record)
