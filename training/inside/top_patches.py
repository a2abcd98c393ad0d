"""`loupe inspect patches`: the parts of photos that excite one filter most.

Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", figure 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import BadRequest, DataError, PackageError, RequestError
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer, layer_named
from models.pixels.preprocess import to_pixels
from training.data.source import Example
from training.inside.pictures import grid
from training.inside.subject import InspectedNetwork

SHOWN = 9
PADDING_RGB = (208, 213, 219)
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The place in a photo that excites the filter most."""

    photo: str
    """The photo's name."""
    value: float
    row: int
    column: int
    """The cell of the map."""
    box: tuple[int, int, int, int]
    """What the cell sees: left, top, right, bottom, in pixels. Parts may lie in the padding."""
    pixels_HWC: NDArray[np.uint8]
    """The network's input."""
    gradient_HWC: NDArray[np.float32] | None = None
    """The guided gradient of that cell; None: it cannot be taken."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The strongest patches of one filter."""

    layer: Layer
    channel: int
    found: tuple[Patch, ...]
    photos: int
    unreadable: tuple[str, ...]
    why_no_gradient: str


def patches(
    subject: InspectedNetwork, name: str, channel: int, examples: Sequence[Example]
) -> Patches:
    """The `SHOWN` patches, each of another photo of *examples*, that excite *channel* of *name*.

    Raises `BadRequest` for a layer without a map, a channel that it does not have, or fewer photos
    than patches, and `UnknownLayer`.
    """
    layer = layer_named(subject.layers, name)
    if len(layer.shape) != 3 or layer.field is None:
        raise BadRequest(f"layer {layer.name} ({layer.kind}) has no map whose cells see a patch")
    if not 0 <= channel < layer.shape[0]:
        raise BadRequest(
            f"--filter {channel}: layer {layer.name} has filters 0 to {layer.shape[0] - 1}"
        )
    unreadable: list[str] = []
    found = sorted(
        _strongest(subject, layer, channel, examples, unreadable), key=lambda patch: -patch.value
    )
    readable = len(examples) - len(unreadable)
    if readable < SHOWN:
        raise BadRequest(
            f"{readable} photos can be read; {SHOWN} patches need {SHOWN} photos or more"
        )
    best, why = _with_gradients(subject, layer, channel, found[:SHOWN])
    return Patches(
        layer=layer,
        channel=channel,
        found=tuple(best),
        photos=readable,
        unreadable=tuple(unreadable),
        why_no_gradient=why,
    )


def patches_picture(subject: InspectedNetwork, result: Patches) -> Image.Image:
    """Each patch, and below it what in it excites the filter."""
    tiles, labels = [], []
    for patch in result.found:
        tiles.append(cut(Image.fromarray(patch.pixels_HWC), patch.box))
        labels.append(f"{patch.value:.3g}")
    for patch in result.found:
        if patch.gradient_HWC is not None:
            tiles.append(cut(_gradient(patch.gradient_HWC), patch.box))
            labels.append("guided gradient")
    width, height = (
        result.found[0].box[2] - result.found[0].box[0],
        result.found[0].box[3] - result.found[0].box[1],
    )
    return grid(
        tiles,
        labels,
        title=f"What excites filter {result.channel} of {result.layer.name} in {subject.title}",
        lines=(
            (
                f"The strongest place in each of {len(result.found)} photos out of"
                f" {result.photos}; a cell sees {width}x{height} pixels. Below each its value;"
                " light grey is padding around the image."
            ),
            result.why_no_gradient
            or "Guided gradients show what in the patch the filter answers to; grey is 0.",
        ),
        columns=SHOWN,
    )


def patches_json(result: Patches) -> dict[str, Any]:
    """The patches with photo, value, cell and box, and the photos that could not be read."""
    return {
        "layer": result.layer.name,
        "filter": result.channel,
        "photos": result.photos,
        "unreadable": list(result.unreadable),
        "patches": [
            {
                "photo": patch.photo,
                "value": patch.value,
                "cell": [patch.row, patch.column],
                "box": list(patch.box),
            }
            for patch in result.found
        ],
    }


def _strongest(
    subject: InspectedNetwork,
    layer: Layer,
    channel: int,
    examples: Sequence[Example],
    unreadable: list[str],
) -> Iterator[Patch]:
    """The strongest place of each photo. Names of photos that cannot be used go to *unreadable*."""
    assert subject.encoded is not None
    session = session_with_outputs(subject.encoded, [layer.output])
    channels_last = layer.field is not None and layer.field.spatial == (1, 2)
    for start in range(0, len(examples), BATCH):
        names, images = [], []
        for example in examples[start : start + BATCH]:
            try:
                images.append(to_pixels(example.read(), subject.spec))
                names.append(example.name)
            except (RequestError, DataError):
                unreadable.append(example.name)
        if not images:
            continue
        [values] = feature_maps(session, np.stack(images))
        map_Nhw = values[..., channel] if channels_last else values[:, channel]
        for name, pixels_HWC, map_hw in zip(names, images, map_Nhw, strict=True):
            row, column = (int(part) for part in divmod(int(map_hw.argmax()), map_hw.shape[1]))
            yield Patch(
                photo=name,
                value=float(map_hw[row, column]),
                row=row,
                column=column,
                box=box_of(layer, row, column, pixels_HWC.shape),
                pixels_HWC=pixels_HWC,
            )


def box_of(
    layer: Layer, row: int, column: int, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """What the cell sees in whole pixels; the whole image where the field is larger."""
    assert layer.field is not None
    left, top, right, bottom = layer.field.region(row, column) or (0, 0, shape[1], shape[0])
    if right - left >= shape[1] or bottom - top >= shape[0]:
        return (0, 0, shape[1], shape[0])
    return (int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom)))


def cut(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """*picture* inside *box*; what lies outside of it is the padding's grey."""
    patch = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), PADDING_RGB)
    patch.paste(picture, (-box[0], -box[1]))
    return patch


def _with_gradients(
    subject: InspectedNetwork, layer: Layer, channel: int, found: Sequence[Patch]
) -> tuple[list[Patch], str]:
    """*found* with guided gradients, or the reason why there are none."""
    from models.networks.onnx_in_torch import OnnxNetwork
    from training.inside.gradients import guided_gradient

    assert subject.encoded is not None
    if layer.field is not None and layer.field.spatial == (1, 2):
        return list(found), "The map is stored channels last; no gradients are shown."
    try:
        network = OnnxNetwork(subject.encoded, [layer.output], guided=True)
    except PackageError as error:
        return list(found), f"No gradients: {error}."
    return [
        replace(
            patch,
            gradient_HWC=guided_gradient(
                network, patch.pixels_HWC, channel, patch.row, patch.column
            ),
        )
        for patch in found
    ], ""


def _gradient(gradient_HWC: NDArray[np.float32]) -> Image.Image:
    # Most of the image has no gradient at all.
    reach = max(float(np.abs(gradient_HWC).max()) * 0.5, 1e-12)
    share_HWC = np.clip(gradient_HWC / reach * 0.5 + 0.5, 0.0, 1.0)
    return Image.fromarray((share_HWC * 255.0).round().astype(np.uint8))
