"""Where a run's epochs are shown besides `metrics.jsonl`, which is the record: TensorBoard, and
MLflow for those who have it.
"""

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


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who is told of each epoch."""

    tensorboard: bool = True
    """Write events to `tensorboard/` in the run folder."""
    mlflow: str | None = None
    """MLflow's tracking URI: a server's `http://...`, or a folder as `file:mlruns`. None: no MLflow."""

    @contextmanager
    def open(self, run: Run, *, epochs_done: int) -> Iterator[Log]:
        """What takes each epoch of *run*, of which *epochs_done* are done already.

        Raises `ConfigError` if something needed is not installed.
        """
        with ExitStack() as stack:
            logs: list[Log] = []
            if self.tensorboard:
                logs.append(stack.enter_context(_tensorboard(run, epochs_done=epochs_done)))
            if self.mlflow is not None:
                logs.append(stack.enter_context(_mlflow(run, self.mlflow)))

            def log(result: EpochResult) -> None:
                for one in logs:
                    one(result)

            yield log


TENSORBOARD = Tracking()
NOWHERE = Tracking(tensorboard=False)


def figures(result: EpochResult) -> dict[str, float]:
    """What is drawn of an epoch, by name."""
    return {
        "loss/train": result.train_loss,
        "accuracy/val": result.val_accuracy,
        "learning_rate": result.learning_rate,
        "images_per_s": result.images_per_s,
        "seconds": result.seconds,
    }


@contextmanager
def _tensorboard(run: Run, *, epochs_done: int) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard cannot be imported ({error}); `make setup` installs it, and"
            " --no-tensorboard does without"
        ) from error
    # What an interrupted epoch wrote before its checkpoint is not shown twice.
    purge = epochs_done + 1 if epochs_done else None
    writer = SummaryWriter(str(run.path / TENSORBOARD_FOLDER), purge_step=purge)

    def log(result: EpochResult) -> None:
        for name, value in figures(result).items():
            writer.add_scalar(name, value, result.epoch)
        writer.flush()

    try:
        if not epochs_done:
            writer.add_text("config", f"```json\n{run.config.to_json()}```")
        yield log
    finally:
        writer.close()


@contextmanager
def _mlflow(run: Run, uri: str) -> Iterator[Log]:
    client, identifier = _mlflow_run(run, uri)

    def log(result: EpochResult) -> None:
        for name, value in figures(result).items():
            client.log_metric(identifier, name, value, step=result.epoch)

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(identifier, status=status)


def _mlflow_run(
    run: Run, uri: str
) -> tuple[Any, str]:  # Any: mlflow is an extra that may be missing
    """MLflow's client, and the id of its run for *run*: the one that was begun with it, or a new
    one.
    """
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
        # Newer releases want a word before they write to a folder; whoever names one has said it.
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
        identifier = client.create_run(
            experiment, run_name=run.path.name, tags=_tags(run)
        ).info.run_id
        for name, value in dataclasses.asdict(run.config).items():
            client.log_param(identifier, name, value)
        known.write_text(json.dumps({"uri": uri, "run_id": identifier}) + "\n", encoding="utf-8")
    except (MlflowException, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"--mlflow {uri}: {error}") from error
    return client, str(identifier)


def _tags(run: Run) -> dict[str, str]:
    environment = run.record.environment
    return {
        "data": run.record.data.source,
        "data_sha256": run.record.data.sha256,
        "git_commit": environment.provenance.git_commit or "",
        "device": environment.device,
    }
