"""The survey as one self-contained HTML page with thumbnails, copies side by side."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from string import Template

from models.errors import DataError, RequestError
from models.pixels.preprocess import decode
from training.data.check.findings import Finding
from training.data.check.inspection import SPEC, Seen
from training.data.check.survey import Survey
from training.data.layout.names import number

TEMPLATE = Template(Path(__file__).with_name("report.template.html").read_text(encoding="utf-8"))
MAX_GROUPS = 12
MAX_IMAGES = 6
MAX_FILES = 20
THUMBNAIL_PX = 200
WORDS = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}


def page(result: Survey) -> str:
    """The report of *result*."""
    source = html.escape(result.listing.source)
    return TEMPLATE.substitute(
        source=source,
        summary=(
            f"{number(result.seen, 'image')} of"
            f" {number(result.listing.labels, 'class', 'classes')}. Each was read and decoded in"
            " full."
        ),
        cards="".join(_card(level, count) for level, count in result.levels().items()),
        findings="".join(_section(result, finding) for finding in result.findings)
        or "<p>Nothing was found.</p>",
        classes=_classes(result),
    )


def _card(level: str, count: int) -> str:
    return (
        '<div class="card'
        f' {level if count else "none"}"><b>{count}</b><span>{WORDS[level][count != 1]}</span></div>'
    )


def _section(result: Survey, finding: Finding) -> str:
    shown = "".join(
        _group(result, finding, at) for at in range(min(len(finding.groups), MAX_GROUPS))
    )
    more = (
        f"<p>and {len(finding.groups) - MAX_GROUPS:,} more: they stand in the JSON</p>"
        if len(finding.groups) > MAX_GROUPS
        else ""
    )
    files = "".join(f"<li>{html.escape(name)}</li>" for name in finding.files[:MAX_FILES])
    return (
        f"<section><h2><span class={finding.level}>{WORDS[finding.level][0]}</span>"
        f" {html.escape(finding.check)}</h2><p"
        f" class=message>{html.escape(finding.message)}</p><p>{html.escape(finding.advice)}</p>{f'<ul>{files}</ul>' if files else ''}<div"
        f" class=groups>{shown}</div>{more}</section>"
    )


def _group(result: Survey, finding: Finding, at: int) -> str:
    group = finding.groups[at]
    figures = "".join(_figure(result, place) for place in group[:MAX_IMAGES])
    more = f"<p>and {len(group) - MAX_IMAGES} more</p>" if len(group) > MAX_IMAGES else ""
    note = f"<p class=note>{html.escape(finding.notes[at])}</p>" if finding.notes else ""
    return (
        f'<div class="group {"many" if len(group) > 1 else "one"}"><div'
        f" class=row>{figures}</div>{more}{note}</div>"
    )


def _figure(result: Survey, place: int) -> str:
    image = result.seen[place]
    name, label = (
        html.escape(image.example.name),
        html.escape(result.listing.labels[image.example.label]),
    )
    return (
        f"<figure>{_thumbnail(image, name)}<figcaption><b>{label}</b>"
        f" {html.escape(image.split)}<br><small>{name}</small></figcaption></figure>"
    )


def _thumbnail(image: Seen, name: str) -> str:
    """A small JPEG inside the page.

    Decoded again: to keep one of every image would cost more memory than the few that are shown
    cost time.
    """
    try:
        small = decode(image.example.read(), SPEC) if image.picture is not None else None
    except (DataError, RequestError):
        small = None
    if small is None:
        return "<div class=blind>cannot be shown</div>"
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return (
        f'<img src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode("ascii")}"'
        f' alt="{name}" loading=lazy>'
    )


def _classes(result: Survey) -> str:
    counts = result.counts()
    head = "".join(f"<th scope=col>{html.escape(split)}</th>" for split in counts)
    most = max((count for counted in counts.values() for count in counted.values()), default=0) or 1
    rows = "".join(
        f"<tr><th scope=row>{html.escape(label)}</th>"
        + "".join(
            f'<td style="--share:{counted[label] / most:.3f}">{counted[label]:,}</td>'
            for counted in counts.values()
        )
        + "</tr>"
        for label in result.listing.labels
    )
    return f"<div class=scroll><table><tr><td></td>{head}</tr>{rows}</table></div>"
