"""Retraining: the whole chain, and a promotion only if a paired test on the same images says that
the new model is not worse.
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
    """Whether the new version took over, and why."""

    ref: ModelRef
    accuracy: float
    """Of the new version: on the images of the comparison, or on its held-out images where there was none."""
    production: ModelRef | None
    """The version that was in production before."""
    paired: Paired | None
    """Both versions on the same images; None if there was none in production, or its classes differ."""
    margin: float
    promoted: bool
    reason: str
    path: Path
    """Where the verdict is stored as JSON."""

    @property
    def production_accuracy(self) -> float | None:
        """Of the version in production before, on the same images; None if there was none, or its
        classes differ.
        """
        return None if self.paired is None else self.paired.old

    def write(self) -> None:
        """Write the verdict to `path`."""
        compared = None
        if self.paired is not None:
            compared = {
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
            "production": None if self.production is None else self.production.version,
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
    """Train on *source*, export, publish as the next version of *name*, and promote it if it is
    shown to be not worse than production.

    `Paired.finding` is the rule, *margin* the loss of accuracy that it lets pass. Runs, packages
    and, beside its package, the verdict go below *artifacts*. Raises what its steps raise; what is
    in production then stays there.
    """
    if TorchrunSettings().world_size > 1:
        raise ConfigError(
            "retrain runs in one process; under torchrun, use `loupe train`, then `loupe export`"
            " and `loupe publish` without it"
        )
    # Before the training whose result could not be published.
    check_name("model name", name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    dataset = load_dataset(source, seed=config.seed, options=options)
    run = train(config, dataset, artifacts / "runs" / f"{name}-{stamp}")
    package = artifacts / "packages" / f"{name}-{stamp}"
    manifest = export(
        run, package, precision=precision, abstain_accuracy=abstain_accuracy, int8=int8
    )
    before, why = _production(store, name), f"retrain on {source}"
    try:
        paired = None if before is None else _compare(package, before.path, dataset)
    except Exception:
        # An old version that cannot be opened must not cost the new one.
        store.publish(package, name=name, why=f"{why}; the comparison with production failed")
        raise
    promoted, reason = _judge(package, before, paired, margin)
    ref = store.publish(
        package,
        name=name,
        why=(
            why if before is None else f"{why}; {'to be' if promoted else 'not'} promoted: {reason}"
        ),
    )
    if promoted and _production(store, name) != ref:
        store.promote(name, ref.version, why=reason)
    accuracy = manifest.evaluation.metrics["top1"].value if paired is None else paired.new
    verdict = Verdict(
        ref,
        accuracy,
        before,
        paired,
        margin,
        promoted,
        reason,
        package.with_name(f"{package.name}.verdict.json"),
    )
    verdict.write()
    return verdict


def _judge(
    package: Path, before: ModelRef | None, paired: Paired | None, margin: float
) -> tuple[bool, str]:
    if before is None:
        return True, "there was none in production"
    if paired is None:
        return (
            False,
            (
                f"version {before.version} has other classes{_difference(package, before.path)}, so"
                " they cannot be compared"
            ),
        )
    return paired.finding(margin) in PROMOTES, explained(
        paired, old_version=before.version, margin=margin
    )


def _production(store: Store, name: str) -> ModelRef | None:
    try:
        return store.resolve(name)
    except (UnknownModel, UnknownVersion):
        return None


def _compare(new: Path, old: Path, dataset: Dataset) -> Paired | None:
    """Both packages, each with its own preprocessing, on the held-out images that both can read;
    None if they have not the same classes.

    Classes go by name: the packages may have them in different orders.
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
