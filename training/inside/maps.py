"""`loupe inspect features` and `filters`: what layers answer to an image, and their weights.

Letters used in shapes: C channels, h and w cells of a map, D and I outputs and inputs of a filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import BadRequest, PackageError
from models.inspection.feature_maps import feature_maps, session_with_outputs, weights_of
from models.inspection.layers import Layer, layer_named
from training.inside.pictures import DIVERGING_RGB, RAMP_RGB, Sheet, coloured, drawn
from training.inside.subject import InspectedNetwork, photo_pixels

if TYPE_CHECKING:
    from training.inside.gradients import EffectiveField

FRAME_RGB = (253, 231, 37)
SHOWN = 64
"""Maps or filters in a picture at most."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """A layer's answer to one image."""

    layer: Layer
    values_Chw: NDArray[np.float32]
    pixels_HWC: NDArray[np.uint8]
    """What the network was given."""
    effective: EffectiveField | None
    """None: no gradients can be taken."""

    @property
    def dead(self) -> int:
        """How many maps are nowhere above 0."""
        return int((self.values_Chw.max(axis=(1, 2)) <= 0.0).sum())

    @property
    def strongest(self) -> list[int]:
        """Channels by their largest value, strongest first."""
        return [int(index) for index in np.argsort(-self.values_Chw.max(axis=(1, 2)))]


def features(subject: InspectedNetwork, image: Path, name: str) -> Maps:
    """What layer *name* of *subject* answers to the photo *image*.

    Raises `UnknownLayer`, `BadRequest` for a layer without a map, and `RequestError` for an image
    that cannot be used.
    """
    layer = layer_named(subject.layers, name)
    if len(layer.shape) != 3:
        raise BadRequest(
            f"layer {layer.name} ({layer.kind}) gives {layer.shape[0]} values and no map; maps end"
            f" at {_last_map(subject.layers).name}"
        )
    assert subject.encoded is not None
    pixels_HWC = photo_pixels(image, subject.spec)
    session = session_with_outputs(subject.encoded, [layer.output])
    [values] = feature_maps(session, pixels_HWC[np.newaxis])
    values_Chw = values[0]
    if layer.field is not None and layer.field.spatial == (1, 2):
        values_Chw = values_Chw.transpose(2, 0, 1)
    return Maps(
        layer=layer,
        values_Chw=values_Chw,
        pixels_HWC=pixels_HWC,
        effective=_effective(subject, layer, pixels_HWC),
    )


def features_picture(subject: InspectedNetwork, maps: Maps) -> Image.Image:
    """The photo and the strongest maps, all in one scale of colours."""
    return drawn(features_sheet(subject, maps))


def features_sheet(subject: InspectedNetwork, maps: Maps, *, most: int = SHOWN) -> Sheet:
    """The photo and the strongest maps, *most* pictures in all."""
    first = [("input", Image.fromarray(maps.pixels_HWC)), *seen_by_one_cell(maps)]
    shown = maps.strongest[: most - len(first)]
    values = maps.values_Chw[shown]
    signed = bool(values.min() < -0.05 * values.max())
    reach = float(np.percentile(np.abs(values), 99.8))
    low, ramp = (-reach, DIVERGING_RGB) if signed else (0.0, RAMP_RGB)
    tiles = [tile for _, tile in first]
    tiles += [coloured(values_hw, low, reach, ramp) for values_hw in values]
    labels = [label for label, _ in first] + [
        f"{channel}: {maps.values_Chw[channel].max():.3g}" for channel in shown
    ]
    channels, height, width = maps.values_Chw.shape
    colours = (
        f"Blue is -{reach:.3g} and less, white 0, red {reach:.3g} and more."
        if signed
        else f"Dark is 0, yellow {reach:.3g} and more."
    )
    return Sheet(
        tiles=tiles,
        labels=labels,
        title=f"Feature maps of {maps.layer.name} ({maps.layer.kind}) in {subject.title}",
        lines=(
            (
                f"{len(shown)} of {channels} maps of {height}x{width} cells, strongest first. Below"
                " each: channel and largest value (no unit)."
            ),
            f"{colours} {maps.dead} maps are nowhere above 0. {_field(maps.layer, maps.effective)}",
        ),
    )


def features_json(maps: Maps) -> dict[str, Any]:
    """Each channel's range and mean, and where its largest value lies (row, column)."""
    width = maps.values_Chw.shape[2]
    return {
        "layer": maps.layer.name,
        "shape": list(maps.values_Chw.shape),
        "effective_field_px": maps.effective.side_px if maps.effective else None,
        "channels": [
            {
                "index": index,
                "min": float(values_hw.min()),
                "max": float(values_hw.max()),
                "mean": float(values_hw.mean()),
                "largest_at": [int(part) for part in divmod(int(values_hw.argmax()), width)],
            }
            for index, values_hw in enumerate(maps.values_Chw)
        ],
    }


def filters(subject: InspectedNetwork, name: str) -> tuple[Layer, NDArray[np.float32]]:
    """The weights [D,I,h,w] of the convolution *name*, as the graph runs them.

    Raises `UnknownLayer`, and `BadRequest` for a layer that is no convolution.
    """
    layer = layer_named(subject.layers, name)
    if "convolution" not in layer.kind:
        near = next((item.name for item in subject.layers if "convolution" in item.kind), "none")
        raise BadRequest(
            f"layer {layer.name} ({layer.kind}) has no filters; the first convolution is {near}"
        )
    assert subject.encoded is not None
    return layer, weights_of(subject.encoded, layer.output)


def filters_picture(
    subject: InspectedNetwork, layer: Layer, weights_DIhw: NDArray[np.float32]
) -> Image.Image:
    """Filters that read three channels in colour; of others the strongest input of each."""
    return drawn(filters_sheet(subject, layer, weights_DIhw))


def filters_sheet(
    subject: InspectedNetwork, layer: Layer, weights_DIhw: NDArray[np.float32], *, most: int = SHOWN
) -> Sheet:
    """The *most* filters with the largest norm."""
    outputs, inputs, height, width = weights_DIhw.shape
    shown = [
        int(index)
        for index in np.argsort(-np.linalg.norm(weights_DIhw.reshape(outputs, -1), axis=1))
    ][:most]
    reach = float(np.abs(weights_DIhw[shown]).max())
    if inputs == 3:
        tiles = [_in_colour(weights_DIhw[index]) for index in shown]
        labels = [str(index) for index in shown]
        how = "Red, green and blue are the weights of the three inputs; grey is 0. Each filter has"
        how += " a scale of its own."
    else:
        chosen = [int(np.abs(weights_DIhw[index]).sum(axis=(1, 2)).argmax()) for index in shown]
        tiles = [
            coloured(weights_DIhw[index, strongest], -reach, reach, DIVERGING_RGB)
            for index, strongest in zip(shown, chosen, strict=True)
        ]
        labels = [f"{index} of input {part}" for index, part in zip(shown, chosen, strict=True)]
        how = f"Of each filter the input channel with the largest weights. Blue is -{reach:.2g},"
        how += f" white 0, red {reach:.2g}."
    return Sheet(
        tiles=tiles,
        labels=labels,
        title=f"Filters of {layer.name} ({layer.kind}) in {subject.title}",
        lines=(
            (
                f"{len(shown)} of {outputs} filters of {height}x{width} over {inputs} inputs,"
                " largest norm first. The number is the output channel."
            ),
            f"{how} Batch normalisation is folded in, as it runs.",
        ),
    )


def _effective(
    subject: InspectedNetwork, layer: Layer, pixels_HWC: NDArray[np.uint8]
) -> EffectiveField | None:
    from models.networks.onnx_in_torch import OnnxNetwork
    from training.inside.gradients import effective_field

    assert subject.encoded is not None
    if layer.field is None or layer.field.spatial == (1, 2):
        return None
    try:
        return effective_field(OnnxNetwork(subject.encoded, [layer.output]), pixels_HWC)
    except PackageError:
        return None


def seen_by_one_cell(maps: Maps) -> list[tuple[str, Image.Image]]:
    """The photo as the middle cell of the map sees it: a frame, and what moves it inside."""
    if maps.effective is None or maps.layer.field is None:
        return []
    heat_HW1 = np.sqrt(maps.effective.gradient_HW)[:, :, np.newaxis]
    seen = Image.fromarray((maps.pixels_HWC * (0.15 + 0.85 * heat_HW1)).astype(np.uint8))
    region = maps.layer.field.region(maps.effective.row, maps.effective.column)
    if region is not None:
        ImageDraw.Draw(seen).rectangle(region, outline=FRAME_RGB, width=2)
    return [("seen by one cell", seen)]


def _in_colour(weights_Ihw: NDArray[np.float32]) -> Image.Image:
    reach = max(float(np.abs(weights_Ihw).max()), 1e-12)
    share_hw3 = (weights_Ihw / reach * 0.5 + 0.5).transpose(1, 2, 0)
    return Image.fromarray((share_hw3 * 255.0).round().astype(np.uint8))


def _last_map(layers: list[Layer]) -> Layer:
    return next(layer for layer in reversed(layers) if len(layer.shape) == 3)


def _field(layer: Layer, effective: EffectiveField | None) -> str:
    if layer.field is None:
        return ""
    region = layer.field.region(0, 0)
    if region is None:
        return "Each cell sees the whole image."
    theory = f"Each cell sees {region[3] - region[1]:g}x{region[2] - region[0]:g} pixels"
    if effective is None:
        return f"{theory}."
    return f"{theory}; 95 % of what moves it lies in {effective.side_px}x{effective.side_px}."
