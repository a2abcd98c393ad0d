"""Dead ReLUs: units that answer 0, on one photo and on all photos of a source.

Letters used in shapes: N photos, C channels, h and w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer
from training.data.loader import limited
from training.data.predict import predict
from training.data.quarantine import Quarantine
from training.data.source import Example
from training.inside.subject import InspectedNetwork

KINDS = ("ReLU", "ReLU6")
BATCH = 4
"""All maps of a batch are in memory at once."""
MOST = 500
"""Photos that are looked at, as evenly over the classes as can be."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of one ReLU. A unit is a channel of a map, or one value."""

    layer: str
    units: int
    zero_share: float
    """Values that are 0 on the photo, 0 to 1."""
    silent: int
    """Units that are 0 everywhere on the photo."""
    dead: int | None = None
    """Units that are 0 everywhere on every photo of the source; None: there is no source."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The ReLUs of a network."""

    units: tuple[Units, ...]
    photos: int = 0
    """Photos of the source that were looked at."""
    unreadable: tuple[str, ...] = ()


def survey(
    subject: InspectedNetwork, pixels_HWC: NDArray[np.uint8], examples: Sequence[Example]
) -> Survey:
    """What the ReLUs of *subject* give on the photo *pixels_HWC*, and on *examples*.

    Raises `DataError` if none of *examples* can be read.
    """
    relus = [layer for layer in subject.layers if layer.kind in KINDS]
    if not relus:
        return Survey(units=())
    assert subject.encoded is not None
    session = session_with_outputs(subject.encoded, [layer.output for layer in relus])
    own = feature_maps(session, pixels_HWC[np.newaxis])
    found = [_units(layer, values) for layer, values in zip(relus, own, strict=True)]
    if not examples:
        return Survey(units=tuple(found))

    def run(pixels_NHWC: NDArray[np.uint8], _: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
        maps = feature_maps(session, pixels_NHWC)
        return {layer.name: _alive(layer, m) for layer, m in zip(relus, maps, strict=True)}

    chosen = limited(examples, MOST)
    quarantine = Quarantine("--data", images=len(chosen), most=1.0)
    places, alive = predict(
        run,
        chosen,
        subject.spec,
        [layer.name for layer in relus],
        title="photos",
        batch_size=BATCH,
        quarantine=quarantine,
    )
    if not places:
        raise DataError(f"none of the {len(chosen)} photos of --data can be read")
    counted = [
        Units(
            layer=item.layer,
            units=item.units,
            zero_share=item.zero_share,
            silent=item.silent,
            dead=int((~alive[item.layer].any(axis=0)).sum()),
        )
        for item in found
    ]
    return Survey(
        units=tuple(counted),
        photos=len(places),
        unreadable=tuple(name for _, name in quarantine.broken),
    )


def _units(layer: Layer, values: NDArray[np.float32]) -> Units:
    alive_C = _alive(layer, values)[0]
    return Units(
        layer=layer.name,
        units=len(alive_C),
        zero_share=float((values <= 0.0).mean()),
        silent=int((~alive_C).sum()),
    )


def _alive(layer: Layer, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each unit is above 0 anywhere, [N,C]."""
    channels_last = layer.field is not None and layer.field.spatial == (1, 2)
    axes = tuple(range(1, values.ndim - 1) if channels_last else range(2, values.ndim))
    return np.asarray((values > 0.0).any(axis=axes))
