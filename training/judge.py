"""Scores a package, as it will be served, on any labelled images."""

from __future__ import annotations

from pathlib import Path

from models.errors import DataError
from models.manifest import Evaluation
from models.runtime import open_model
from training.data import load_dataset, without_unreadable
from training.evaluate import answer, evaluation
from training.progress import CONSOLE
from training.report import write_report


def judge(package: Path, source: str, out: Path) -> Evaluation:
    """The figures of *package* on the held-out images of *source*, with a report in the folder *out*.

    Raises `PackageError` for a package that may not be served, `DataError` if the classes of *source* are not the package's.
    """
    model = open_model(package)
    manifest = model.manifest
    dataset, unreadable = without_unreadable(load_dataset(source, seed=manifest.lineage.seed), manifest.preprocess)
    for name, reason in unreadable.items():
        CONSOLE.print(f"[yellow]left out[/] {name}: {reason}")
    if dataset.labels != manifest.labels:
        raise DataError(f"{source} has the classes {', '.join(dataset.labels)}; {package} answers with {', '.join(manifest.labels)}")
    answers = answer(model, dataset.splits[dataset.held_out], manifest.preprocess)
    figures = evaluation(answers, source=source, split=dataset.held_out, provider=model.provider)
    out.mkdir(parents=True, exist_ok=True)
    write_report(
        out, title=package.name, labels=manifest.labels, spec=manifest.preprocess, answers=answers, evaluation=figures, parity=manifest.parity
    )
    return figures
