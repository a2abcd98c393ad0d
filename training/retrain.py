"""Retraining: train, evaluate, export and publish, then promote.

The new version is promoted only if a paired test on the same images finds it not worse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.errors import ConfigError, PackageError, TrainingError, UnknownModel, UnknownVersion
from models.files import read_file
from models.package.manifest import MANIFEST_FILE, Precision
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
from training.evaluate.promotion import DEFAULT_MARGIN, Paired, explained, plainly
from training.export.export import DEFAULT_INT8, export
from training.export.int8.choose import Int8Options
from training.fit.loop import train
from training.progress import CONSOLE, shown
from training.runs.run import Run, open_run
from training.settings import TorchrunSettings
from training.summary import few


@dataclass(frozen=True, kw_only=True)
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
    """With every figure."""
    plain: str
    """The same in plain words."""
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
    resumed: Run | None = None,
) -> Verdict:
    """Train on *source*, export, and publish as the next version of *name*.

    The version is promoted if it is shown to be not worse than production. `Paired.finding` is the
    rule, *margin* the loss of accuracy that it allows. Runs, packages and the verdict, beside its
    package, are written below *artifacts*. *resumed* is a run of `interrupted`, which goes on where
    it was. Raises what its steps raise; production then stays as it is.
    """
    if TorchrunSettings().world_size > 1:
        raise ConfigError(
            "retrain runs in one process; under torchrun, use `loupe train`, then `loupe export`"
            " and `loupe publish` without it"
        )
    # A wrong name is found before training, not after.
    check_name("model name", name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = resumed.path if resumed else artifacts / "runs" / f"{name}-{stamp}"
    dataset = load_dataset(source, seed=config.seed, options=options)
    before = _production(store, name)
    _tell_before(dataset, before)
    run = resumed if resumed and resumed.finished else None
    if run is None:
        with _saying_how_to_continue(name):
            run = train(config, dataset, folder, resume=resumed is not None)
    package = artifacts / "packages" / folder.name
    if not package.exists():
        export(run, package, precision=precision, abstain_accuracy=abstain_accuracy, int8=int8)
    if resumed is not None and (ref := _published(package, store, name)):
        raise TrainingError(
            f"{package} is published already, as {ref}: the retraining was interrupted at its very"
            f" end. Compare it yourself, or `loupe models promote {name} {ref.version}`"
        )
    verdict = _publish(package, dataset, before, name=name, store=store, margin=margin, data=source)
    verdict.write()
    return verdict


def interrupted(name: str, artifacts: Path) -> Run:
    """The run of the newest retraining of *name*, which has no verdict yet.

    Raises `TrainingError` if there is none.
    """
    pattern = re.compile(rf"{re.escape(name)}-\d{{8}}-\d{{6}}-\d{{6}}")
    found = [path for path in (artifacts / "runs").glob("*") if pattern.fullmatch(path.name)]
    newest = max(found, key=lambda path: path.name, default=None)
    if newest is None or _verdict_file(artifacts / "packages" / newest.name).exists():
        raise TrainingError(
            f"no retraining of {name} was interrupted below {artifacts}; start one without --resume"
        )
    return open_run(newest)


@contextmanager
def _saying_how_to_continue(name: str) -> Iterator[None]:
    """Name the way on from Ctrl-C: `loupe train`, which says its own, knows no store."""
    try:
        yield
    except KeyboardInterrupt:
        CONSOLE.print(f"With export and publish: `loupe retrain --name {name} --resume`")
        raise


def _tell_before(dataset: Dataset, before: ModelRef | None) -> None:
    """Say what will keep the new version from being promoted, before hours are spent on it."""
    for line in few(len(dataset.splits[dataset.held_out]), dataset.held_out):
        CONSOLE.print(f"[yellow]look at this[/]: {shown(line)}")
    try:
        labels = dataset.labels if before is None else read_manifest(before.path).labels
    except PackageError:
        return  # the comparison will say so, once the new version is published
    if changed := _changed(dataset.labels, labels):
        CONSOLE.print(
            f"[yellow]look at this[/]: other classes than {shown(str(before))} in production"
            f" ({shown(changed)}): the new version will not be compared and not be promoted"
        )


def _publish(
    package: Path,
    dataset: Dataset,
    before: ModelRef | None,
    *,
    name: str,
    store: Store,
    margin: float,
    data: str,
) -> Verdict:
    """Publish *package*, and promote it if it is not worse than *before* on *dataset*."""
    why = f"retrain on {data}"
    paired, promoted = None, True
    reason = plain = "there was none in production"
    if before is not None:
        try:
            paired = _compare(package, before.path, dataset)
        except Exception:
            # A version in production that cannot be opened must not cost the new one.
            store.publish(package, name=name, why=f"{why}; the comparison with production failed")
            raise
        promoted = paired is not None and paired.finding(margin) == "not worse"
        reason, plain = _reasons(package, before, paired, margin)
        why += f"; {'to be' if promoted else 'not'} promoted: {reason}"
    ref = store.publish(package, name=name, why=why)
    if promoted and _production(store, name) != ref:
        store.promote(name, ref.version, why=reason)
    top1 = read_manifest(package).evaluation.metrics["top1"].value
    return Verdict(
        ref=ref,
        accuracy=top1 if paired is None else paired.new,
        production=before,
        paired=paired,
        margin=margin,
        promoted=promoted,
        reason=reason,
        plain=plain,
        path=_verdict_file(package),
    )


def _reasons(
    package: Path, before: ModelRef, paired: Paired | None, margin: float
) -> tuple[str, str]:
    """Why the version was or was not promoted: with every figure, and plainly."""
    if paired is not None:
        version = before.version
        return (
            explained(paired, old_version=version, margin=margin),
            plainly(paired, old_version=version, margin=margin),
        )
    changed = _changed(read_manifest(package).labels, read_manifest(before.path).labels)
    reason = f"version {before.version} has other classes ({changed}), so they cannot be compared"
    return reason, reason


def _published(package: Path, store: Store, name: str) -> ModelRef | None:
    """The version of *name* that *package* is already, if it is the newest one."""
    if name not in store.names():
        return None
    newest = store.resolve(f"{name}:{store.versions(name)[-1]}")
    same = read_file(newest.path / MANIFEST_FILE) == read_file(package / MANIFEST_FILE)
    return newest if same else None


def _verdict_file(package: Path) -> Path:
    return package.with_name(f"{package.name}.verdict.json")


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
        )
        for which, model in models.items()
    ]
    new_N, old_N = (
        found.correct_N[[not unreadable.holds("", example.name) for example in found.examples]]
        for found in answers
    )
    return Paired.of(new_N, old_N)


def _changed(labels: Sequence[str], before: Sequence[str]) -> str:
    """Which classes came and which went; empty if they are the same."""
    came, went = missing(before, labels), missing(labels, before)
    parts = [f"{what}: {few_of(names)}" for what, names in (("gone", went), ("new", came)) if names]
    known = {name.casefold(): name for name in went}
    renamed = [f"{known[name.casefold()]} to {name}" for name in came if name.casefold() in known]
    parts += [f"only renamed: {few_of(renamed)}; call it as before"] if renamed else []
    return "; ".join(parts)
