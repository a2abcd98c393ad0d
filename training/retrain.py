"""Retraining: the whole chain, and a promotion only if the new model is not worse on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.errors import UnknownModel, UnknownVersion
from models.manifest import Manifest, read_manifest
from models.runtime import open_model
from models.store import ModelRef, Store
from training.config import TrainConfig
from training.data import Dataset, load_dataset, without_unreadable
from training.evaluate import answer
from training.export import export
from training.loop import train


@dataclass(frozen=True)
class Verdict:
    """Whether the new version took over, and why."""

    ref: ModelRef
    accuracy: float
    """Of the new version on its held-out images."""
    production: ModelRef | None
    """The version that was in production before."""
    production_accuracy: float | None
    """Of that version on the same images; None if there was none, or its classes differ."""
    promoted: bool
    reason: str


def retrain(config: TrainConfig, source: str, *, name: str, store: Store, artifacts: Path) -> Verdict:
    """Train on *source*, export, publish as the next version of *name*, and promote it if its accuracy is not lower than production's.

    Runs and packages go below *artifacts*. Raises what its steps raise; what is in production then stays there.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    dataset = load_dataset(source, seed=config.seed)
    run = train(config, dataset, artifacts / "runs" / f"{name}-{stamp}")
    package = artifacts / "packages" / f"{name}-{stamp}"
    manifest = export(run, package)
    before = _production(store, name)
    compared = None if before is None else _accuracy_on(before, dataset, manifest)
    ref = store.publish(package, name=name, why=f"retrain on {source}")
    accuracy = manifest.evaluation.metrics["top1"].value
    promoted, reason = _judge(accuracy, before, compared, manifest)
    if promoted and before is not None:
        store.promote(name, ref.version, why=reason)
    return Verdict(ref, accuracy, before, compared, promoted, reason)


def _judge(accuracy: float, before: ModelRef | None, compared: float | None, manifest: Manifest) -> tuple[bool, str]:
    if before is None:
        return True, "the first version of this model"
    if compared is None:
        return (
            False,
            f"version {before.version} has other classes than {', '.join(manifest.labels)}, so they cannot be compared",
        )
    if accuracy < compared:
        return False, f"accuracy {accuracy:.2%} is lower than the {compared:.2%} of version {before.version} on the same images"
    return True, f"accuracy {accuracy:.2%} is not lower than the {compared:.2%} of version {before.version} on the same images"


def _production(store: Store, name: str) -> ModelRef | None:
    try:
        return store.resolve(name)
    except (UnknownModel, UnknownVersion):
        return None


def _accuracy_on(ref: ModelRef, dataset: Dataset, manifest: Manifest) -> float | None:
    """Accuracy of the stored version, with its own preprocessing, on the images that judged *manifest*; None if its classes differ."""
    if read_manifest(ref.path).labels != manifest.labels:
        return None
    # The very images that the new version was judged on, as its own spec could read them.
    readable, _ = without_unreadable(dataset, manifest.preprocess)
    model = open_model(ref.path)
    answers = answer(model, readable.splits[readable.held_out], model.manifest.preprocess, title=f"evaluate version {ref.version}")
    return float(answers.correct_N.mean())
