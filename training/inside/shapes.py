"""`loupe inspect shapes`: the table of layers, its totals, and the funnel as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL.Image import Image

from models.inspection.layers import Layer
from models.inspection.plan import Saving, separable_saving
from training.inside.funnel import HOW_DRAWN, funnel_picture, funnel_svg
from training.inside.page import Section, page
from training.inside.subject import InspectedNetwork

NAME_SHOWN = 22
"""Characters of a layer's name in the terminal; of a longer one the end is shown."""
SHORT_COLUMNS = ("layer", "output", "window", "params", "mult-adds", "field")
COLUMNS = (
    "layer",
    "kind",
    "output",
    "window",
    "size formula",
    "parameters",
    "multiply-adds",
    "bytes moved",
    "field",
    "jump",
    "start",
)


@dataclass(frozen=True)
class Totals:
    """Sums over all layers, for one image."""

    parameters: int
    multiply_adds: int
    bytes_moved: int
    measured_ms: float | None
    """None: not measured."""


def totals(layers: Sequence[Layer]) -> Totals:
    """The sums over *layers*."""
    times = [layer.measured_ms for layer in layers if layer.measured_ms is not None]
    return Totals(
        parameters=sum(layer.parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        bytes_moved=sum(layer.bytes_moved for layer in layers),
        measured_ms=sum(times) if times else None,
    )


def table(layers: Iterable[Layer], *, measured: bool) -> list[list[str]]:
    """A row of text for each layer, in the order of `COLUMNS`; *measured* adds milliseconds."""
    return [
        [
            layer.name,
            layer.kind,
            "x".join(map(str, layer.shape)),
            layer.window,
            layer.formula,
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
            f"{layer.bytes_moved:,}",
            *_field(layer),
            *([_milliseconds(layer)] if measured else []),
        ]
        for layer in layers
    ]


def short_table(layers: Iterable[Layer], columns: int | None = 80) -> list[list[str]]:
    """A row for each layer that fits *columns*: layer, output, window, costs and field.

    Long names keep their ends. None: names are whole.
    """
    shown = None if columns is None else NAME_SHOWN + max(0, columns - 80)
    return [
        [
            layer.name
            if shown is None or len(layer.name) <= shown
            else f"…{layer.name[1 - shown :]}",
            "x".join(map(str, layer.shape)),
            layer.window.replace(f"groups {layer.groups}", f"g{layer.groups}"),
            _rounded(layer.parameters),
            _rounded(layer.multiply_adds),
            _field(layer)[0].removesuffix(" image"),
        ]
        for layer in layers
    ]


def summary(subject: InspectedNetwork) -> list[str]:
    """The totals, and what depthwise-separable convolutions save, as sentences."""
    found = totals(subject.layers)
    height, width = subject.image_size
    costs = (
        f"For one image of {height}x{width} pixels: {found.parameters:,} parameters,"
        f" {found.multiply_adds:,} multiply-adds, {found.bytes_moved:,} bytes moved."
    )
    lines = [costs]
    if found.measured_ms is not None:
        lines.append(
            f"Measured on this machine, one thread: {found.measured_ms:.2f} ms. A time includes the"
            " layers below it that have none: they run as one operation."
        )
    saving = separable_saving(subject.layers)
    if saving.pairs:
        lines.append(_saving(saving))
    if any(layer.field and layer.field.global_context for layer in subject.layers):
        lines.append(
            "* A gate or a normalisation looks at the whole image and scales this map. The field is"
            " what a cell sees apart from that."
        )
    unknown = next((layer for layer in subject.layers if layer.field is None), None)
    if unknown is not None:
        lines.append(
            f"No receptive field can be told from {unknown.name} on: its operation"
            f" ({unknown.kind}) mixes places in no fixed window."
        )
    return lines


def as_json(subject: InspectedNetwork) -> dict[str, Any]:
    """Everything as one JSON document; sizes in pixels, times in milliseconds."""
    return {
        "title": subject.title,
        "image_size": list(subject.image_size),
        "totals": asdict(totals(subject.layers)),
        "separable": asdict(separable_saving(subject.layers)),
        "layers": [
            {**asdict(layer), "window": layer.window, "formula": layer.formula}
            for layer in subject.layers
        ],
    }


def shapes_picture(subject: InspectedNetwork) -> Image:
    """The funnel, with the totals above it."""
    return funnel_picture(
        subject.layers,
        subject.image_size,
        title=f"Shapes of {subject.title}",
        lines=[*summary(subject)[:2], HOW_DRAWN],
    )


def shapes_page(subject: InspectedNetwork) -> str:
    """The page of `loupe inspect shapes`."""
    measured = subject.packaged
    return page(
        f"Shapes of {subject.title}",
        summary(subject),
        [
            Section(
                title="The funnel: space shrinks, channels grow",
                picture=funnel_svg(subject.layers, subject.image_size),
                caption=f"{HOW_DRAWN} Point at a block for the layer's name.",
            ),
            Section(
                title="Layer by layer",
                text=(
                    "The size of an output follows from"
                    " (input - kernel + 2·padding) / stride + 1, rounded down. Sizes of fields,"
                    " jumps and starts are pixels of the image."
                ),
                columns=[*COLUMNS, *(["measured ms"] if measured else [])],
                rows=table(subject.layers, measured=measured),
            ),
        ],
    )


def _field(layer: Layer) -> list[str]:
    field = layer.field
    if field is None:
        return ["unknown", "", ""]
    if field.rows is None or field.columns is None:
        return ["whole image", "", ""]
    mark = "*" if field.global_context else ""
    return [
        "x".join(dict.fromkeys(f"{axis.size:g}" for axis in (field.rows, field.columns))) + mark,
        "x".join(dict.fromkeys(f"{axis.jump:g}" for axis in (field.rows, field.columns))),
        "x".join(dict.fromkeys(f"{axis.start:g}" for axis in (field.rows, field.columns))),
    ]


def _rounded(count: int) -> str:
    """Three digits with K, M or G; empty for 0."""
    for power, letter in ((9, "G"), (6, "M"), (3, "K")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {letter}"
    return str(count) if count else ""


def _milliseconds(layer: Layer) -> str:
    return "" if layer.measured_ms is None else f"{layer.measured_ms:.3f}"


def _saving(saving: Saving) -> str:
    return (
        f"{saving.pairs} depthwise-separable convolutions take {saving.separable:,} multiply-adds."
        f" Standard convolutions of the same shapes would take {saving.standard:,}:"
        f" {saving.standard / saving.separable:.1f} times as many."
    )
