"""Scores a package, as it will be served, on any labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.errors import DataError
from models.messages import os_error_text
from models.package.manifest import MODEL_FILE, Evaluation, Manifest
from models.runtime.session import open_model
from training.data.index import require_readable
from training.data.layout.names import few_of
from training.data.quarantine import Quarantine
from training.data.source import (
    AS_USUAL,
    Dataset,
    SourceOptions,
    by_reason,
    list_source,
    load_dataset,
    tell_used,
)
from training.data.sources.dataset import aligned, missing
from training.evaluate.latency import latency
from training.evaluate.predictions import evaluation, predictions
from training.evaluate.report.figures import Subject
from training.evaluate.report.report import write_report
from training.progress import CONSOLE, shown

ALL = "all"
MAX_UNREADABLE_SHARE = 0.05


def judge(
    package: Path, source: str, out: Path, *, whole: bool = False, options: SourceOptions = AS_USUAL
) -> Evaluation:
    """The figures of *package* on the held-out images of *source*, or on all if *whole*.

    The report goes to the folder *out*. Classes are matched by name, and *source* may have a part
    of the package's. Raises `PackageError` for a package that may not be served, `DataError` if
    *source* has classes that the package has not.
    """
    model = open_model(package, allow_fallback=False)
    manifest = model.manifest
    dataset = (
        _everything(source, manifest, options)
        if whole
        else load_dataset(source, seed=manifest.lineage.seed, to_train=False, options=options)
    )
    check_classes(str(package), manifest.labels, dataset)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make report folder {os_error_text(error, out)}") from error
    split = ALL if whole else dataset.held_out
    judged = replace(dataset, splits={split: dataset.splits[split]})
    quarantine = Quarantine(dataset.source, images=len(judged.splits[split]), most=1.0)
    found = predictions(
        model.run,
        aligned(judged, manifest.labels).splits[split],
        manifest.preprocess,
        split=split,
        quarantine=quarantine,
        embedding=manifest.architecture.embedding_size is not None,
    )
    require_readable(judged, quarantine.broken, most=MAX_UNREADABLE_SHARE)
    unreadable = {name: reason for (_, name), reason in quarantine.broken.items()}
    read = replace(judged, splits={split: tuple(found.examples)})
    tell_used(read, unreadable, see=str(out / "report.json"))
    figures = evaluation(found, source=dataset.source, split=split, provider=model.provider)
    timings = latency((package / MODEL_FILE).read_bytes(), found.examples, manifest.preprocess)
    not_judged = {"unused": by_reason(dataset.unused), "unreadable": unreadable}
    write_report(
        out,
        _subject(package, manifest),
        found=found,
        evaluation=figures,
        latency=timings,
        beside=not_judged,
    )
    return figures


def _everything(source: str, manifest: Manifest, options: SourceOptions) -> Dataset:
    """All images of *source* as one split, however it is cut. Raises `DataError`."""
    listing = list_source(source, options)
    if listing.problems:
        raise DataError(listing.problems[0])
    if (
        manifest.data is not None
        and manifest.lineage.weights != "imported"
        and listing.source == manifest.data.source
    ):
        CONSOLE.print(
            f"[yellow]{shown(listing.source)} trained this model[/]: on all of its images the"
            " figures are better than the model is"
        )
    return Dataset(
        listing.source,
        listing.labels,
        {ALL: tuple(example for examples in listing.splits.values() for example in examples)},
        listing.unused,
    )


def check_classes(model: str, labels: tuple[str, ...], dataset: Dataset) -> None:
    """Name the classes of *labels* that *dataset* has not.

    Raises `DataError` for those that *model* cannot answer with.
    """
    if unknown := missing(labels, dataset.labels):
        raise DataError(
            f"{dataset.source} has classes that {model} does not know: {few_of(unknown)}; it"
            f" answers with {few_of(labels)}. Rename their folders or labels, or leave"
            " them out"
        )
    if absent := missing(dataset.labels, labels):
        count = f"{len(absent)} of {len(labels)} classes have no images in"
        CONSOLE.print(
            f"[yellow]not judged[/]: {shown(f'{count} {dataset.source}: {few_of(absent)}')}"
        )


def source_name(manifest: Manifest) -> str:
    """What the package was compared with when it was made."""
    return "the imported model" if manifest.lineage.weights == "imported" else "torch"


def _subject(package: Path, manifest: Manifest) -> Subject:
    return Subject(
        # In a store the folder is a number, and the name stands above it.
        title=f"{package.parent.name} {package.name}" if package.name.isdecimal() else package.name,
        labels=manifest.labels,
        spec=manifest.preprocess,
        parity=manifest.parity,
        temperature=manifest.temperature,
        abstain_threshold=manifest.abstain_threshold,
        source=source_name(manifest),
    )
