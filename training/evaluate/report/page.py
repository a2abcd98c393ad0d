"""The report as one page of HTML that loads nothing.

Whatever comes from outside, names above all, is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from models.package.manifest import Evaluation, Interval, Parity, PreprocessSpec
from models.pixels.preprocess import to_pixels
from training.data.source import Example
from training.evaluate.calibration import Bin, Reliability
from training.evaluate.latency import Latency, Timing
from training.evaluate.metrics import ClassScore
from training.evaluate.report.charts import abstention_chart, reliability_chart
from training.evaluate.report.figures import Confused, Figures, Mistake
from training.evaluate.slices import Slice, Slices
from training.export.int8.candidate import Candidate
from training.export.int8.search import Found

TEMPLATE = Template((Path(__file__).with_name("report.template.html")).read_text(encoding="utf-8"))
MAX_CONFUSION_CLASSES = 30
WORST_CLASSES = 20
"""Rows of the class table that are always open; with more classes the others unfold."""
WORST_PAIRS = 8
THUMBNAIL_PX = 160
NAMES = {
    "top1": "right at the first guess",
    "top5": "right within five guesses",
    "ece": "expected calibration error",
}
PROPERTIES = {
    "size": "image size",
    "brightness": "brightness",
    "sharpness": "sharpness",
    "exif": "EXIF rotation",
}
ALIKE = {
    "size": "all images have the same size",
    "brightness": "all are equally bright",
    "sharpness": "all are equally sharp",
    "exif": "all are alike in EXIF rotation",
}


def page(found: Figures, examples: Sequence[Example]) -> str:
    """The page.

    *examples* are the images of the evaluation in order: the worst mistakes are shown. Raises
    `DataError` if one went away.
    """
    return TEMPLATE.substitute(
        title=html.escape(found.subject.title),
        summary=_summary(found),
        metrics="".join(
            _card(NAMES[name], interval) for name, interval in found.evaluation.metrics.items()
        ),
        calibration=_calibration(found.served, found.raw),
        abstention=_abstention(found),
        slices=_slices(found.slices, found.evaluation.metrics["top1"].value),
        classes=_classes(found.classes),
        confusion=_confusion(found),
        mistakes=_mistakes(found, examples),
        latency=_latency(found.latency),
        parity=_parity(found.subject.parity) + _quantisation(found.subject.quantisation),
    )


def _summary(found: Figures) -> str:
    evaluation: Evaluation = found.evaluation
    return (
        f"The exported package itself, with the preprocessing that serves, on {evaluation.count:,}"
        f" {html.escape(evaluation.split)} images of {html.escape(evaluation.data)}"
        f" ({evaluation.provider}, {found.model_ms_per_image:.1f} ms of model time an image in"
        " batches)."
    )


def _card(name: str, interval: Interval) -> str:
    bounds = f"{interval.low:.1%} to {interval.high:.1%}"
    return (
        "<div"
        f" class=card><b>{interval.value:.1%}</b><span>{name}</span><small>{interval.confidence:.0%}"
        f" interval {bounds}</small></div>"
    )


def _calibration(served: Reliability, raw: Reliability) -> str:
    if raw.temperature == served.temperature:
        words = "The temperature is 1: confidence is served as the network gives it."
    else:
        words = (
            f"A temperature of {served.temperature:.3f}, fitted on validation images and written"
            f" into the graph, changes the calibration error from {raw.ece:.1%} to {served.ece:.1%}"
            " on these images. Orange: without it."
        )
    rows = [_bin_row(part) for part in served.bins]
    table = _table(["confidence", "images", "mean", "right", "95% interval"], rows)
    return (
        "<p>Bars: how many are right at that confidence, with 95% intervals; on the dashed line"
        " confidence can be taken at its word."
        f" {words}</p>{reliability_chart(served, raw)}<details><summary>As a"
        f" table</summary>{table}</details>"
    )


def _bin_row(part: Bin) -> list[str]:
    right = part.accuracy
    bounds = f"{part.low:.0%} to {part.high:.0%}"
    return [
        bounds,
        f"{part.count:,}",
        f"{part.confidence:.1%}",
        f"{right.value:.1%}",
        f"{right.low:.0%} to {right.high:.0%}",
    ]


def _abstention(found: Figures) -> str:
    threshold = found.subject.abstain_threshold
    words = (
        f"This model abstains below a confidence of {threshold:.3f}"
        if threshold
        else "This model always answers (its threshold is 0)"
    )
    rows = []
    for reachable in found.reachable:
        point = reachable.point
        rows.append(
            [
                f"{reachable.accuracy:.1%}",
                *(
                    ["not reached", ""]
                    if point is None
                    else [f"{point.answered:.1%}", f"{point.threshold:.3f}"]
                ),
            ]
        )
        if point is None:
            break  # nor is any greater accuracy
    table = _table(["right, of the answered", "answered", "at threshold"], rows) if rows else ""
    return (
        f"<p>If answers below a confidence were held back: how many of the rest are right. {words}:"
        f" the dot.</p>{abstention_chart(found.curve, threshold=threshold)}{table}"
    )


def _slices(slices: Slices, overall: float) -> str:
    weak = sum(part.weak for part in slices.slices)
    alike = "; ".join(ALIKE[by] for by in slices.alike)
    left_out = f" Not compared: {alike}." if alike else ""
    if not slices.slices:
        return f"<p>Nothing to compare: {alike}.</p>"
    chance = (
        f"about {slices.by_chance:.1f} would be by chance alone, so take a mark for a reason to"
        " look"
    )
    words = (
        f"Marked ▼: the whole 95% interval lies below the {overall:.1%} over all images. {weak} of"
        f" the {len(slices.slices)} slices looked at {'is' if weak == 1 else 'are'} marked;"
        f" {chance}.{left_out}"
    )
    rows = "".join(_slice_row(part) for part in slices.slices)
    head = "<tr><th scope=row>slice</th><th>images</th><th>right</th><th>95% interval</th></tr>"
    return f"<p>{words}</p><div class=scroll><table>{head}{rows}</table></div>"


def _slice_row(part: Slice) -> str:
    bounds = ""
    if part.low is not None and part.high is not None:
        numbers = (
            (f"{part.low:,.0f}", f"{part.high:,.0f} px")
            if part.by == "size"
            else (f"{part.low:.3f}", f"{part.high:.3f}")
        )
        bounds = f"<small>{numbers[0]} to {numbers[1]}</small>"
    accuracy = part.accuracy
    mark = ' class="weak"' if part.weak else ""
    sign = " ▼" if part.weak else ""
    return (
        f"<tr{mark}><th"
        f" scope=row><small>{PROPERTIES[part.by]}</small>{part.name}{sign}{bounds}</th><td>{part.count:,}</td><td>{accuracy.value:.1%}</td><td>{accuracy.low:.0%}"
        f" to {accuracy.high:.0%}</td></tr>"
    )


def _classes(scores: Sequence[ClassScore]) -> str:
    """Worst F1 first; of equals the one with more images."""
    rows = [
        _class_row(score) for score in sorted(scores, key=lambda score: (score.f1, -score.support))
    ]
    names = ["class", "images", "precision", "recall", "F1"]
    shown = _table(names, rows[:WORST_CLASSES])
    rest = rows[WORST_CLASSES:]
    return shown + (
        f"<details><summary>The other {len(rest)} classes</summary>{_table(names, rest)}</details>"
        if rest
        else ""
    )


def _class_row(score: ClassScore) -> list[str]:
    return [
        html.escape(score.label),
        f"{score.support:,}",
        *(f"{value:.1%}" for value in (score.precision, score.recall, score.f1)),
    ]


def _confusion(found: Figures) -> str:
    if not found.confused:
        return "<p>Nothing: every image was classified right.</p>"
    if len(found.subject.labels) > MAX_CONFUSION_CLASSES:
        return _pairs(found.confused)
    return _pairs(found.confused[:WORST_PAIRS]) + _matrix(found)


def _pairs(confused: Iterable[Confused]) -> str:
    return _table(
        ["truth", "answer", "images"],
        [
            [html.escape(pair.truth), html.escape(pair.answer), f"{pair.images:,}"]
            for pair in confused
        ],
    )


def _matrix(found: Figures) -> str:
    labels, confusion_KK = found.subject.labels, found.confusion_KK
    head = "".join(f"<th scope=col>{html.escape(label)}</th>" for label in labels)
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    rows = []
    for k, label in enumerate(labels):
        cells = "".join(
            f'<td class="{"hit" if k == j else "miss"}"'
            f' style="--share:{share_KK[k, j]:.3f}">{count or ""}</td>'
            for j, count in enumerate(confusion_KK[k])
        )
        rows.append(f"<tr><th scope=row>{html.escape(label)}</th>{cells}</tr>")
    return (
        "<div class=scroll><table"
        f" class=confusion><tr><td></td>{head}</tr>{''.join(rows)}</table></div><p>Rows: the truth."
        " Columns: the answer.</p>"
    )


def _mistakes(found: Figures, examples: Sequence[Example]) -> str:
    if not found.mistakes:
        return "<p>None: every image was classified right.</p>"
    return "".join(
        _figure(mistake, examples[mistake.index], found.subject.spec) for mistake in found.mistakes
    )


def _figure(mistake: Mistake, example: Example, spec: PreprocessSpec) -> str:
    name = html.escape(mistake.image)
    caption = (
        f"<b>{html.escape(mistake.answer)}</b> {mistake.probability:.0%}<br>truth:"
        f" {html.escape(mistake.truth)}"
    )
    picture = f'<img src="{_data_url(example, spec)}" alt="{name}" loading=lazy>'
    return f"<figure>{picture}<figcaption>{caption}<br><small>{name}</small></figcaption></figure>"


def _data_url(example: Example, spec: PreprocessSpec) -> str:
    """A small PNG of what the model saw, inside the page."""
    stream = io.BytesIO()
    image = Image.fromarray(to_pixels(example.read(), spec))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _latency(latency: Latency) -> str:
    words = (
        f"One image at a time, in this process, without HTTP, on {html.escape(latency.cpu)}"
        f" ({html.escape(latency.cpu_class)}, {latency.threads} threads to use). Other machines"
        " have other figures: measure where you serve."
    )
    return f"<p>{words}</p>{_table(['milliseconds', 'p50', 'p99', 'runs'], [_timing_row(timing) for timing in latency.timings])}"


def _timing_row(timing: Timing) -> list[str]:
    threads = (
        f", {timing.threads} thread{'s' if timing.threads > 1 else ''}"
        if timing.what == "model"
        else ""
    )
    return [
        f"{timing.what}{threads}",
        f"{timing.p50_ms:.2f}",
        f"{timing.p99_ms:.2f}",
        str(timing.runs),
    ]


def _parity(parity: Parity) -> str:
    return (
        "<p>The largest difference of a probability between torch and ONNX Runtime is"
        f" {parity.max_probability_difference:.1e} (allowed {parity.tolerance:.0e}) over"
        f" {parity.images} images, at batch sizes {', '.join(map(str, parity.batch_sizes))}.</p>"
    )


def _quantisation(found: Found | None) -> str:
    if found is None:
        return ""
    words = (
        f"{html.escape(found.reason)}. Calibrated on {found.calibration_images} images, judged on"
        f" {found.judging_images} others, on a CPU of class {html.escape(found.cpu_class)}, in"
        f" {found.seconds:.0f} s."
    )
    head = ["candidate", "accuracy", "points lost", "same answer", "MB", "ms", "times fp32's speed"]
    return (
        "<h3>The way to"
        f" int8</h3><p>{words}</p>{_table(head, [_candidate(candidate) for candidate in found.path])}"
    )


def _candidate(candidate: Candidate) -> list[str]:
    name = html.escape(candidate.name)
    lost = f"{candidate.loss_points:.2f}" + ("" if candidate.inside else " ▼")
    numbers = [
        f"{candidate.accuracy:.2%}",
        lost,
        f"{candidate.agreement:.1%}",
        f"{candidate.megabytes:.2f}",
        f"{candidate.ms:.1f}",
    ]
    return [f"<b>{name}</b>" if candidate.taken else name, *numbers, f"{candidate.speedup:.2f}"]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the row. The cells are HTML."""
    columns = f"<th scope=row>{head[0]}</th>" + "".join(f"<th>{name}</th>" for name in head[1:])
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><tr>{columns}</tr>{body}</table></div>"
