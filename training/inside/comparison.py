"""`loupe inspect compare`: where two networks, or one network on two photos, part.

Letters used in shapes: V values of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from models.errors import BadRequest
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer
from models.messages import one_line
from models.runtime.answer_graph import ANSWER
from training.inside.bars import Bar, Scale, bars_picture, bars_svg
from training.inside.page import Section, page
from training.inside.subject import InspectedNetwork, photo_pixels

SCALE = Scale(-7, 0)
"""Relative errors from 1e-7, which float32 cannot keep apart, to 1."""
HOW_DRAWN = (
    "Length of the difference divided by the length of the first's values, on a logarithmic scale."
    " Layers run from top to bottom."
)
NAMED = 5
"""Layers without a counterpart that a sentence names."""
COLUMNS = ("layer", "kind", "output", "relative error", "correlation", "largest difference")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the values of one layer lie apart."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    relative_error: float
    """Length of the difference, divided by the length of the first's values."""
    correlation: float
    """Pearson's, -1 to 1."""
    largest: float
    """Largest absolute difference of one value."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All layers that both have, in order."""

    title: str
    differences: tuple[Difference, ...]
    answers: tuple[tuple[str, float], tuple[str, float]]
    """Label and probability of both answers."""
    missing: tuple[str, ...]
    """Layers of the first that the second does not have with the same shape."""

    def first_beyond(self, tolerance: float) -> Difference | None:
        """The first layer whose relative error is above *tolerance*."""
        return next((d for d in self.differences if d.relative_error > tolerance), None)


def compare(
    first: InspectedNetwork, second: InspectedNetwork, images: tuple[Path, Path]
) -> Comparison:
    """*first* on the first of *images* against *second* on the second, layer by layer.

    Raises `BadRequest` if they have no layer in common, and `RequestError` for an image that cannot
    be used.
    """
    shapes = {layer.name: layer.shape for layer in second.layers}
    shared = [layer for layer in first.layers if shapes.get(layer.name) == layer.shape]
    if not shared:
        raise BadRequest(
            f"{first.title} and {second.title} have no layer in common: layers are matched by name"
            " and shape"
        )
    theirs = {layer.name: layer for layer in second.layers}
    ours = _values(first, images[0], shared)
    others = _values(second, images[1], [theirs[layer.name] for layer in shared])
    same = images[0] == images[1]
    return Comparison(
        title=f"{first.title} against {second.title}"
        if same
        else f"{first.title}: {one_line(images[0].name)} against {one_line(images[1].name)}",
        differences=tuple(
            _difference(layer, ours[layer.output], others[theirs[layer.name].output])
            for layer in shared
        ),
        answers=(_answer(first, ours[ANSWER]), _answer(second, others[ANSWER])),
        missing=tuple(layer.name for layer in first.layers if layer not in shared),
    )


def sentences(found: Comparison, tolerance: float) -> list[str]:
    """Where the two part, and what both answer."""
    first = found.first_beyond(tolerance)
    parted = (
        f"The first layer whose relative error is above {tolerance:g} is {first.layer}"
        f" ({first.kind}): {first.relative_error:.2g}."
        if first
        else f"No layer's relative error is above {tolerance:g}."
    )
    (label, probability), (other, other_probability) = found.answers
    lines = [
        parted,
        f"The answers are {label} ({probability:.1%}) and {other} ({other_probability:.1%}).",
    ]
    if found.missing:
        lines.append(_without_counterpart(found.missing))
    return lines


def table(found: Comparison) -> list[list[str]]:
    """A row of text for each layer, in the order of `COLUMNS`."""
    return [
        [
            item.layer,
            item.kind,
            "x".join(map(str, item.shape)),
            f"{item.relative_error:.2e}",
            f"{item.correlation:.4f}",
            f"{item.largest:.3g}",
        ]
        for item in found.differences
    ]


def as_json(found: Comparison, tolerance: float) -> dict[str, Any]:
    """Everything as one document."""
    first = found.first_beyond(tolerance)
    return {
        "title": found.title,
        "tolerance": tolerance,
        "first_beyond": first.layer if first else None,
        "answers": [
            {"label": label, "probability": probability} for label, probability in found.answers
        ],
        "layers_without_counterpart": len(found.missing),
        "layers": [asdict(item) for item in found.differences],
    }


def comparison_picture(found: Comparison, tolerance: float) -> Image:
    """The relative error of each layer as a bar."""
    return bars_picture(
        _bars(found), SCALE, title=found.title, lines=[*sentences(found, tolerance), HOW_DRAWN]
    )


def comparison_page(found: Comparison, tolerance: float) -> str:
    """The page of `loupe inspect compare`."""
    return page(
        found.title,
        sentences(found, tolerance),
        [
            Section(
                title="Error layer by layer",
                picture=bars_svg(_bars(found), SCALE, label="Relative error layer by layer"),
                caption=HOW_DRAWN,
            ),
            Section(title="Figures", columns=COLUMNS, rows=table(found)),
        ],
    )


def _without_counterpart(names: Sequence[str]) -> str:
    """The names, or the first of them."""
    if len(names) == 1:
        return f"1 layer has no counterpart of the same name and shape: {names[0]}."
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    shown = ", ".join(names[:NAMED]) + more
    return f"{len(names)} layers have no counterpart of the same name and shape: {shown}."


def _bars(found: Comparison) -> list[Bar]:
    return [Bar(name=item.layer, value=item.relative_error) for item in found.differences]


def _values(
    subject: InspectedNetwork, image: Path, layers: Sequence[Layer]
) -> dict[str, NDArray[np.float32]]:
    """What each of *layers* gives for *image*, [V], and the probabilities, by value."""
    assert subject.encoded is not None
    names = list(dict.fromkeys([*(layer.output for layer in layers), ANSWER]))
    session = session_with_outputs(subject.encoded, names)
    pixels_HWC = photo_pixels(image, subject.spec)
    found = feature_maps(session, pixels_HWC[np.newaxis])
    return {name: values.ravel() for name, values in zip(names, found, strict=True)}


def _difference(layer: Layer, a_V: NDArray[np.float32], b_V: NDArray[np.float32]) -> Difference:
    apart_V = a_V.astype(np.float64) - b_V
    length = float(np.linalg.norm(a_V))
    varied = bool(a_V.std() > 0.0 and b_V.std() > 0.0)
    return Difference(
        layer=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        relative_error=float(np.linalg.norm(apart_V)) / (length or 1.0),
        correlation=float(np.asarray(np.corrcoef(a_V, b_V))[0, 1]) if varied else 1.0,
        largest=float(np.abs(apart_V).max()),
    )


def _answer(subject: InspectedNetwork, probabilities_K: NDArray[np.float32]) -> tuple[str, float]:
    index = int(probabilities_K.argmax())
    return subject.labels[index], float(probabilities_K[index])
