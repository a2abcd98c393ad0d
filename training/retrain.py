"""Retraining: the whole chain, and a promotion only if the new model is not worse on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.errors import UnknownModel, UnknownVersion
from models.manifest import read_manifest
from models.names import check_name
from models.runtime import open_model
from models.store import ModelRef, Store
from training.config import TrainConfig
from training.data import Dataset, Example, load_dataset, readable
from training.evaluate import answer
from training.export import export
from training.loop import train


@dataclass(frozen=True)
class Verdict:
    """Whether the new version took over, and why."""

    ref: ModelRef
    accuracy: float
    """Of the new version: on the images of the comparison, or on its held-out images where there was none."""
    production: ModelRef | None
    """The version that was in production before."""
    production_accuracy: float | None
    """Of that version on the same images; None if there was none, or its classes differ."""
    promoted: bool
    reason: str


@dataclass(frozen=True)
class _Comparison:
    """Accuracy of two versions on the same images."""

    new: float
    old: float
    count: int


def retrain(config: TrainConfig, source: str, *, name: str, store: Store, artifacts: Path) -> Verdict:
    """Train on *source*, export, publish as the next version of *name*, and promote it if its accuracy is not lower than production's.

    Runs and packages go below *artifacts*. Raises what its steps raise; what is in production then stays there.
    """
    # Before the training whose result could not be published.
    check_name("model name", name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    dataset = load_dataset(source, seed=config.seed)
    run = train(config, dataset, artifacts / "runs" / f"{name}-{stamp}")
    package = artifacts / "packages" / f"{name}-{stamp}"
    manifest = export(run, package)
    before = _production(store, name)
    # Before the comparison: an old version that cannot be opened must not cost the new one.
    ref = store.publish(package, name=name, why=f"retrain on {source}")
    compared = None if before is None else _compare(ref, before, dataset)
    promoted, reason = _judge(before, compared)
    if promoted and _production(store, name) != ref:
        store.promote(name, ref.version, why=reason)
    accuracy = manifest.evaluation.metrics["top1"].value if compared is None else compared.new
    return Verdict(ref, accuracy, before, None if compared is None else compared.old, promoted, reason)


def _judge(before: ModelRef | None, compared: _Comparison | None) -> tuple[bool, str]:
    if before is None:
        return True, "there was none in production"
    if compared is None:
        return False, f"version {before.version} has other classes, so they cannot be compared"
    figures = f"the {compared.old:.2%} of version {before.version} on the same {compared.count} images"
    if compared.new < compared.old:
        return False, f"accuracy {compared.new:.2%} is lower than {figures}"
    return True, f"accuracy {compared.new:.2%} is not lower than {figures}"


def _production(store: Store, name: str) -> ModelRef | None:
    try:
        return store.resolve(name)
    except (UnknownModel, UnknownVersion):
        return None


def _compare(new: ModelRef, old: ModelRef, dataset: Dataset) -> _Comparison | None:
    """Both versions, each with its own preprocessing, on the held-out images that both can read; None if their classes differ."""
    if read_manifest(new.path).labels != read_manifest(old.path).labels:
        return None
    models = [open_model(ref.path, allow_fallback=False) for ref in (new, old)]
    shared: Sequence[Example] = dataset.splits[dataset.held_out]
    for model in models:
        shared, _ = readable(shared, model.manifest.preprocess)
    hits = [
        int(answer(model, shared, model.manifest.preprocess, title=f"evaluate version {ref.version}").correct_N.sum())
        for model, ref in zip(models, (new, old), strict=True)
    ]
    return _Comparison(new=hits[0] / len(shared), old=hits[1] / len(shared), count=len(shared))
