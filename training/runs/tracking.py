"""TensorBoard and MLflow: they show the epochs of a run besides `metrics.jsonl`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from models.errors import ConfigError, TrainingError
from training.runs.run import EpochResult, Run

TENSORBOARD_FOLDER = "tensorboard"
MLFLOW_FILE = "mlflow.json"
EXPERIMENT = "loupe"
Log = Callable[[EpochResult], None]
LogNumber = Callable[[str, float, int], None]
"""Takes a number with its name and its epoch."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where the epochs of a run are shown."""

    tensorboard: bool = True
    """Write events to `tensorboard/` in the run folder."""
    mlflow: str | None = None
    """MLflow's tracking URI: `http://...` of a server, or a folder as `file:mlruns`.
    None: no MLflow."""

    @contextmanager
    def open(self, run: Run, *, epochs_done: int) -> Iterator[Log]:
        """What takes each further epoch of *run*, of which *epochs_done* are finished.

        Raises `ConfigError` if something needed is not installed.
        """
        with ExitStack() as stack:
            trackers: list[LogNumber] = []
            if self.tensorboard:
                trackers.append(stack.enter_context(_tensorboard(run, epochs_done=epochs_done)))
            if self.mlflow is not None:
                trackers.append(stack.enter_context(_mlflow(run, self.mlflow)))

            def log(result: EpochResult) -> None:
                for log_number in trackers:
                    for name, value in figures(result).items():
                        log_number(name, value, result.epoch)

            yield log


TENSORBOARD = Tracking()
NOWHERE = Tracking(tensorboard=False)


def figures(result: EpochResult) -> dict[str, float]:
    """The numbers of an epoch that are shown, by name."""
    return {
        "loss/train": result.train_loss,
        **({} if result.val_loss is None else {"loss/val": result.val_loss}),
        "accuracy/val": result.val_accuracy,
        "learning_rate": result.learning_rate,
        "images_per_s": result.images_per_s,
        "seconds": result.seconds,
    }


@contextmanager
def _tensorboard(run: Run, *, epochs_done: int) -> Iterator[LogNumber]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard cannot be imported ({error}); `make setup` installs it, and"
            " --no-tensorboard does without"
        ) from error
    # Events of an interrupted epoch without a checkpoint are not shown twice.
    purge = epochs_done + 1 if epochs_done else None
    with SummaryWriter(str(run.path / TENSORBOARD_FOLDER), purge_step=purge) as writer:
        if not epochs_done:
            writer.add_text("config", f"```json\n{run.config.to_json()}```")

        def log_number(name: str, value: float, epoch: int) -> None:
            writer.add_scalar(name, value, epoch)
            writer.flush()

        yield log_number


@contextmanager
def _mlflow(run: Run, uri: str) -> Iterator[LogNumber]:
    client, identifier = _mlflow_run(run, uri)
    status = "FAILED"
    try:
        yield lambda name, value, epoch: client.log_metric(identifier, name, value, step=epoch)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(identifier, status=status)


def _mlflow_run(
    run: Run, uri: str
) -> tuple[Any, str]:  # Any: mlflow is an extra that may be missing
    """MLflow's client and the id of its run for *run*: a new one, or that of the resumed run."""
    try:
        from mlflow import MlflowClient, environment_variables
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise ConfigError(
            f"--mlflow {uri}: MLflow is not installed ({error}); install the extra `mlflow` (pip"
            " install mlflow-skinny), or leave --mlflow away"
        ) from error
    allow = getattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE", None)
    if allow is not None and (uri.startswith("file:") or "://" not in uri):
        # Newer releases want consent before they write to a folder. Naming the folder is consent.
        allow.set(True)
    try:
        client = MlflowClient(tracking_uri=uri)
        known = run.path / MLFLOW_FILE
        if known.is_file():
            identifier = str(json.loads(known.read_text(encoding="utf-8"))["run_id"])
            client.update_run(identifier, status="RUNNING")
            return client, identifier
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
        record = run.record
        tags = {
            "data": record.data.source,
            "data_sha256": record.data.sha256,
            "git_commit": record.environment.provenance.git_commit or "",
            "device": record.environment.device,
        }
        begun = client.create_run(experiment, run_name=run.path.name, tags=tags)
        identifier = str(begun.info.run_id)
        for name, value in dataclasses.asdict(run.config).items():
            client.log_param(identifier, name, value)
        known.write_text(json.dumps({"uri": uri, "run_id": identifier}) + "\n", encoding="utf-8")
    except (MlflowException, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"--mlflow {uri}: {error}") from error
    return client, identifier
