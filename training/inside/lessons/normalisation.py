"""What batch, layer, instance and group normalisation average over, on the same real activations.

Letters used in shapes: N images, C channels, h and w cells of a map, S sets of values that are
averaged together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BadRequest, RequestError
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer, layer_named
from models.pixels.preprocess import to_pixels
from training.inside.lessons.window import Floats
from training.inside.subject import InspectedNetwork

EPSILON = 1e-5
"""Added to a variance, as in torch.nn."""
MOST_GROUPS = 32
"""Source: Wu and He 2018, "Group Normalization", table 3."""
KINDS = ("batch", "layer", "instance", "group")


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """What one kind of normalisation makes of the activations."""

    kind: str
    """One of `KINDS`."""
    over: str
    """What is averaged over, in words."""
    sets_NC: NDArray[np.int64]
    """For each map (an image's channel) the number of its set."""
    set_size: int
    """Values in a set."""
    mean_S: Floats
    variance_S: Floats
    """Divided by the number of values and not by one less."""
    values_NChw: Floats
    """Afterwards, without the learned scale and shift."""

    @property
    def sets(self) -> int:
        """How many sets there are."""
        return len(self.mean_S)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The four kinds on the same activations."""

    title: str
    layer: Layer
    photos: tuple[str, ...]
    pixels_NHWC: NDArray[np.uint8]
    values_NChw: Floats
    groups: int
    found: tuple[Normalised, ...]


def compare(subject: InspectedNetwork, images: Sequence[Path], name: str) -> Compared:
    """The four kinds on what layer *name* of *subject* gives for *images*.

    Raises `UnknownLayer`, and `BadRequest` for a layer without a map or an image that cannot be
    used.
    """
    layer = layer_named(subject.layers, name)
    if len(layer.shape) != 3:
        raise BadRequest(
            f"layer {layer.name} ({layer.kind}) gives {layer.shape[0]} values and no map; choose a"
            " layer with a map, such as a convolution"
        )
    assert subject.encoded is not None
    pixels_NHWC = np.stack([_pixels(subject, image) for image in images])
    session = session_with_outputs(subject.encoded, [layer.output])
    # One image at a time: a graph may have a fixed batch.
    maps = [
        feature_maps(session, pixels_NHWC[index : index + 1])[0] for index in range(len(images))
    ]
    values_NChw = np.concatenate(maps).astype(np.float64)
    if layer.field is not None and layer.field.spatial == (1, 2):
        values_NChw = values_NChw.transpose(0, 3, 1, 2)
    groups = group_count(values_NChw.shape[1])
    return Compared(
        title=f"Normalisation of {layer.name} ({layer.kind}) in {subject.title}",
        layer=layer,
        photos=tuple(image.name for image in images),
        pixels_NHWC=pixels_NHWC,
        values_NChw=values_NChw,
        groups=groups,
        found=tuple(normalised(values_NChw, kind, groups) for kind in KINDS),
    )


def _pixels(subject: InspectedNetwork, image: Path) -> NDArray[np.uint8]:
    try:
        return to_pixels(image.read_bytes(), subject.spec)
    except RequestError as error:
        # Of several photos, the name says which one.
        raise BadRequest(f"{image}: {error}") from error


def group_count(channels: int) -> int:
    """The most groups, up to `MOST_GROUPS`, that share *channels* equally, two or more in each."""
    return max(
        groups
        for groups in range(1, MOST_GROUPS + 1)
        if channels % groups == 0 and (channels // groups > 1 or groups == 1)
    )


def normalised(values_NChw: Floats, kind: str, groups: int) -> Normalised:
    """What the normalisation *kind* makes of *values_NChw*: (value - mean) / sqrt(variance + eps).

    Source: Wu and He 2018, equations 1 to 7.
    """
    images, channels, height, width = values_NChw.shape
    image_N1, channel_1C = np.indices((images, channels))
    size = channels // groups
    sets_NC, over = {
        "batch": (channel_1C, "a channel, over all images"),
        "layer": (image_N1, "an image, over all channels"),
        "instance": (image_N1 * channels + channel_1C, "one channel of one image"),
        "group": (
            image_N1 * groups + channel_1C // size,
            f"{size} channel{'s' if size > 1 else ''} of one image",
        ),
    }[kind]
    per_set = np.bincount(sets_NC.ravel())
    cells = height * width
    # The mean over a set of maps is the mean of the maps' means, since all maps are equally large.
    mean_S = np.bincount(sets_NC.ravel(), values_NChw.mean(axis=(2, 3)).ravel()) / per_set
    centred_NChw = values_NChw - mean_S[sets_NC][:, :, None, None]
    squares_NC = (centred_NChw**2).mean(axis=(2, 3))
    variance_S = np.bincount(sets_NC.ravel(), squares_NC.ravel()) / per_set
    return Normalised(
        kind=kind,
        over=over,
        sets_NC=sets_NC,
        set_size=int(per_set[0]) * cells,
        mean_S=mean_S,
        variance_S=variance_S,
        values_NChw=centred_NChw / np.sqrt(variance_S + EPSILON)[sets_NC][:, :, None, None],
    )


def document(compared: Compared) -> dict[str, Any]:
    """The four kinds as JSON: sets, their means and variances."""
    return {
        "layer": compared.layer.name,
        "photos": list(compared.photos),
        "shape": list(compared.values_NChw.shape),
        "groups": compared.groups,
        "epsilon": EPSILON,
        "kinds": [
            {
                "kind": item.kind,
                "sets": item.sets,
                "values_in_a_set": item.set_size,
                "mean": item.mean_S.tolist(),
                "variance": item.variance_S.tolist(),
                "below_zero_before": below_zero(compared.values_NChw),
                "below_zero_after": below_zero(item.values_NChw),
            }
            for item in compared.found
        ],
    }


def below_zero(values_NChw: Floats) -> float:
    """The share of values below 0, which a ReLU sets to 0."""
    return float((values_NChw < 0.0).mean())


def spreads(values_NChw: Floats) -> tuple[float, float]:
    """How far the means of channels, and those of images, lie apart: standard deviations."""
    return (
        float(values_NChw.mean(axis=(0, 2, 3)).std()),
        float(values_NChw.mean(axis=(1, 2, 3)).std()),
    )
