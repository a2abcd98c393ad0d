"""Retraining: train, evaluate, export and publish, then promote.

The new version is promoted only if a paired test on the same images finds it not worse.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.errors import ConfigError, UnknownModel, UnknownVersion
from models.package.manifest import Precision
from models.package.manifest_file import read_manifest
from models.runtime.session import open_model
from models.store.names import check_name
from models.store.store import ModelRef, Store
from training.config import TrainConfig
from training.data.layout.names import few_of
from training.data.quarantine import Quarantine
from training.data.source import AS_USUAL, Dataset, SourceOptions, load_dataset
from training.data.sources.dataset import missing, relabelled
from training.evaluate.predictions import predictions
from training.evaluate.promotion import DEFAULT_MARGIN, Conclusion, Paired, explained
from training.export.export import DEFAULT_INT8, export
from training.export.int8.choose import Int8Options
from training.fit.loop import train
from training.settings import TorchrunSettings

PROMOTES: frozenset[Conclusion] = frozenset({"nothing lost", "not worse"})


@dataclass(frozen=True)
class Verdict:
    """Whether the new version was promoted, and why."""

    ref: ModelRef
    accuracy: float
    """Of the new version: on the images of the comparison, or else on its held-out images."""
    production: ModelRef | None
    """The version that was in production before."""
    paired: Paired | None
    """Both versions on the same images. None without a version in production, or if its classes
    differ."""
    margin: float
    promoted: bool
    reason: str
    path: Path
    """The JSON file of the verdict."""

    @property
    def production_accuracy(self) -> float | None:
        """Of the version in production before, on the images of the comparison."""
        return None if self.paired is None else self.paired.old

    def write(self) -> None:
        """Write the verdict to `path`."""
        compared = self.paired and {
            **asdict(self.paired),
            "difference": self.paired.difference.model_dump(mode="json"),
            "p_worse": self.paired.p_worse,
            "margin": self.margin,
            "finding": self.paired.finding(self.margin),
        }
        data = {
            "model": self.ref.name,
            "version": self.ref.version,
            "promoted": self.promoted,
            "reason": self.reason,
            "accuracy": self.accuracy,
            "production": self.production and self.production.version,
            "production_accuracy": self.production_accuracy,
            "compared": compared,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def retrain(
    config: TrainConfig,
    source: str,
    *,
    name: str,
    store: Store,
    artifacts: Path,
    margin: float = DEFAULT_MARGIN,
    abstain_accuracy: float | None = None,
    precision: Precision = "fp32",
    int8: Int8Options = DEFAULT_INT8,
    options: SourceOptions = AS_USUAL,
) -> Verdict:
    """Train on *source*, export, and publish as the next version of *name*.

    The version is promoted if it is shown to be not worse than production. `Paired.finding` is the
    rule, *margin* the loss of accuracy that it allows. Runs, packages and the verdict, beside its
    package, are written below *artifacts*. Raises what its steps raise; production then stays as
    it is.
    """
    if TorchrunSettings().world_size > 1:
        raise ConfigError(
            "retrain runs in one process; under torchrun, use `loupe train`, then `loupe export`"
            " and `loupe publish` without it"
        )
    # A wrong name is found before training, not after.
    check_name("model name", name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    dataset = load_dataset(source, seed=config.seed, options=options)
    run = train(config, dataset, artifacts / "runs" / f"{name}-{stamp}")
    package = artifacts / "packages" / f"{name}-{stamp}"
    manifest = export(
        run, package, precision=precision, abstain_accuracy=abstain_accuracy, int8=int8
    )
    before, why = _production(store, name), f"retrain on {source}"
    paired, promoted, reason = None, True, "there was none in production"
    if before is not None:
        judged = read_manifest(before.path).evaluation is not None
        try:
            paired = _compare(package, before.path, dataset) if judged else None
        except Exception:
            # A version in production that cannot be opened must not cost the new one.
            store.publish(package, name=name, why=f"{why}; the comparison with production failed")
            raise
        promoted = paired is not None and paired.finding(margin) in PROMOTES
        if paired is not None:
            reason = explained(paired, old_version=before.version, margin=margin)
        elif judged:
            difference = _difference(package, before.path)
            reason = (
                f"version {before.version} has other classes{difference}, so they cannot be"
                " compared"
            )
        else:
            reason = (
                f"version {before.version} was imported and not evaluated, so no test promotes over"
                " it: import it again with --data, or promote by hand"
            )
        why += f"; {'to be' if promoted else 'not'} promoted: {reason}"
    ref = store.publish(package, name=name, why=why)
    if promoted and _production(store, name) != ref:
        store.promote(name, ref.version, why=reason)
    assert manifest.evaluation is not None
    accuracy = manifest.evaluation.metrics["top1"].value if paired is None else paired.new
    path = package.with_name(f"{package.name}.verdict.json")
    verdict = Verdict(ref, accuracy, before, paired, margin, promoted, reason, path)
    verdict.write()
    return verdict


def _production(store: Store, name: str) -> ModelRef | None:
    try:
        return store.resolve(name)
    except (UnknownModel, UnknownVersion):
        return None


def _compare(new: Path, old: Path, dataset: Dataset) -> Paired | None:
    """Both packages on the held-out images that both can read; None if their classes differ.

    Each has its own preprocessing. Classes are compared by name: their orders may differ.
    """
    if set(read_manifest(new).labels) != set(read_manifest(old).labels):
        return None
    models = {
        "the new version": open_model(new, allow_fallback=False),
        "production": open_model(old, allow_fallback=False),
    }
    examples = dataset.splits[dataset.held_out]
    unreadable = Quarantine(dataset.source, images=len(examples), most=1.0)
    answers = [
        predictions(
            model.run,
            relabelled(examples, dataset.labels, model.manifest.labels),
            model.manifest.preprocess,
            title=f"evaluate {which}",
            quarantine=unreadable,
            embedding=model.manifest.architecture.embedding_size is not None,
        )
        for which, model in models.items()
    ]
    new_N, old_N = (
        found.correct_N[[not unreadable.holds("", example.name) for example in found.examples]]
        for found in answers
    )
    return Paired.of(new_N, old_N)


def _difference(new: Path, old: Path) -> str:
    """Which classes only one of two packages has."""
    labels, before = read_manifest(new).labels, read_manifest(old).labels
    only = {"only there": missing(labels, before), "only in the new one": missing(before, labels)}
    return f" ({'; '.join(f'{where}: {few_of(names)}' for where, names in only.items() if names)})"
