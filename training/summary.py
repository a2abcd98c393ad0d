"""What `train`, `export` and `retrain` say at their end: how good it is, and what comes next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from models.package.manifest import Evaluation, Interval, Manifest
from training.evaluate.metrics import wilson
from training.runs.run import Run

if TYPE_CHECKING:
    from training.retrain import Verdict

SHOWN_MISTAKES = 3
BEST = "the best on the validation images"
FEW_IMAGES = 100
"""With fewer, the interval of an accuracy of 90 % is more than 12 points wide."""

Mistakes = Iterable[tuple[str, str, int]]
"""Truth, answer and how many images, most first."""


def of_run(run: Run) -> list[str]:
    """The end of `loupe train`, as lines."""
    kept, epochs = run.kept(), len(run.metrics())
    if kept is None:
        return [_next_of(run)]
    right = round(kept["val_accuracy"] * kept["val_images"])
    interval = wilson(right, kept["val_images"]) if kept["val_images"] else None
    accuracy = f"{kept['val_accuracy']:.1%}" if interval is None else share(interval)
    judged = f"{kept['val_images']:,} validation images"
    return [
        f"kept: epoch {kept['epoch']} of {epochs}, {BEST}",
        f"accuracy {accuracy} on {judged}; a little too good, because they chose the epoch",
        *mistakes(kept["confused"]),
        *few(kept["val_images"], "validation"),
        _next_of(run),
    ]


def _next_of(run: Run) -> str:
    return f"run {run.path}: next, `loupe export {quote(str(run.path))} --out PACKAGE`"


def of_package(package: Path, manifest: Manifest) -> list[str]:
    """How good the package in folder *package* is, as lines."""
    report = json.loads((package / "report.json").read_text(encoding="utf-8"))
    pairs = [(one["truth"], one["answer"], one["images"]) for one in report.get("confused", ())]
    judged = manifest.evaluation
    lines = [accuracy_line(judged), *mistakes(pairs), *few(judged.count, judged.split)]
    if trained := report.get("training"):
        lines.insert(0, f"kept: epoch {trained['kept']} of {len(trained['epochs'])}, {BEST}")
    if searched := report.get("quantisation"):
        lines.insert(0, f"made in {manifest.precision}: {searched['reason']}")
    if manifest.abstain_threshold:
        lines.append(f"abstains below a confidence of {manifest.abstain_threshold:.3f}")
    return [*lines, f"report {package / 'report.html'}"]


def of_verdict(verdict: Verdict, manifest: Manifest) -> list[str]:
    """The end of `loupe retrain`, as lines."""
    ref = verdict.ref
    promoted = "promoted to production" if verdict.promoted else "not promoted"
    return [
        *of_package(ref.path, manifest),
        f"{ref.name} version {ref.version} published, and {promoted}: {verdict.plain}",
        f"  {verdict.path} has the figures",
        f"next: `loupe serve --model {ref.name}`"
        if verdict.promoted
        else f"next: read the report; `loupe models promote {ref.name} {ref.version}` promotes it"
        " all the same",
    ]


def accuracy_line(judged: Evaluation) -> str:
    """How accurate a package is, and on what."""
    return (
        f"accuracy {share(judged.metrics['top1'])} on {judged.count:,} {judged.split} images of"
        f" {judged.data}"
    )


def share(found: Interval) -> str:
    """Such as `96.1% (91.7% to 98.2%)`."""
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def mistakes(pairs: Mistakes) -> list[str]:
    """The commonest mistakes as one line; none if there are none."""
    shown = [f"{truth} taken for {answer} ({count:,})" for truth, answer, count in pairs]
    return [f"commonest mistakes: {', '.join(shown[:SHOWN_MISTAKES])}"] if shown else []


def few(count: int, split: str) -> Sequence[str]:
    """A line where *count* images are too few to trust a figure; otherwise none."""
    if not 0 < count < FEW_IMAGES:
        return []
    found = wilson(round(0.9 * count), count)
    text = f"{count} {split} images are few: 90% of them right may mean anything"
    return [f"{text} from {found.low:.0%} to {found.high:.0%}"]
