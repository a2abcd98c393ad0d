"""Scores a package, as it will be served, on any labelled images."""

from __future__ import annotations

import os
from pathlib import Path

from rich.markup import escape

from models.errors import DataError
from models.manifest import Evaluation
from models.runtime import open_model
from training.data import Dataset, load_dataset, without_unreadable
from training.evaluate import answer, evaluation
from training.progress import CONSOLE
from training.report import write_report


def judge(package: Path, source: str, out: Path) -> Evaluation:
    """The figures of *package* on the held-out images of *source*, with a report in the folder *out*.

    Raises `PackageError` for a package that may not be served, `DataError` if the classes of *source* are not the package's.
    """
    model = open_model(package, allow_fallback=False)
    manifest = model.manifest
    dataset = load_dataset(source, seed=manifest.lineage.seed, to_train=False)
    if dataset.labels != manifest.labels:
        raise DataError(f"{source} has the classes {', '.join(dataset.labels)}; {package} answers with {', '.join(manifest.labels)}")
    _make(out)
    split = dataset.held_out
    judged, unreadable = without_unreadable(Dataset(dataset.source, dataset.labels, {split: dataset.splits[split]}), manifest.preprocess)
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {escape(f'{name}: {reason}')}")
    answers = answer(model, judged.splits[split], manifest.preprocess)
    figures = evaluation(answers, source=dataset.source, split=split, provider=model.provider)
    write_report(
        out, title=package.name, labels=manifest.labels, spec=manifest.preprocess, answers=answers, evaluation=figures, parity=manifest.parity
    )
    return figures


def _make(out: Path) -> None:
    """The folder for the report, before the work whose result it takes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"report folder {out} cannot be made: {error.strerror or os.strerror(error.errno or 0)}") from error
