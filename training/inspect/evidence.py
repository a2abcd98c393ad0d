"""`loupe inspect explain`: which parts of a photo an answer rests on, by two methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import BadRequest
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.saliency import Curve, agreement, deletion, insertion, occlusion, spread
from models.pixels.preprocess import to_pixels
from training.inspect.pictures import RAMP_RGB, coloured, grid
from training.inspect.subject import Subject

ANSWER, CAM = "probabilities", "cam"
COVER = 0.6
"""Share of the heat's colours in the picture where the heat is strongest."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One method's map for one class, and how well it does."""

    method: str
    heat_hw: NDArray[np.float32]
    deletion: Curve
    insertion: Curve


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A photo, the class that was asked about, and the maps."""

    label: str
    index: int
    probability: float
    pixels_HWC: NDArray[np.uint8]
    found: tuple[Evidence, ...]
    random: tuple[float, float]
    """Deletion and insertion score of a random map: what a map must beat."""

    @property
    def agreement(self) -> float | None:
        """Rank correlation of the methods; None if there is one, or if a map has a single cell."""
        if len(self.found) < 2:
            return None
        return agreement(self.found[0].heat_hw, self.found[1].heat_hw)


def explain(subject: Subject, image: Path, label: str | None) -> Explained:
    """The evidence for class *label*, or for the answer, in the photo *image*.

    Raises `BadRequest` for an unknown label, and `RequestError` for an image that cannot be used.
    """
    assert subject.model is not None
    pixels_HWC = to_pixels(image.read_bytes(), subject.spec)
    session = session_with_outputs(subject.model, [ANSWER])

    def answers(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return feature_maps(session, pixels_NHWC)[0]

    probabilities_K = answers(pixels_HWC[np.newaxis])[0]
    index = int(probabilities_K.argmax()) if label is None else _index(subject.labels, label)
    maps = {"occlusion": occlusion(answers, pixels_HWC, index)}
    if CAM in subject.outputs:
        cam = session_with_outputs(subject.model, [CAM])
        maps = {"class activation": feature_maps(cam, pixels_HWC[np.newaxis])[0][0, index], **maps}
    shuffled_hw = np.random.default_rng(0).random((14, 14), dtype=np.float32)
    return Explained(
        label=subject.labels[index],
        index=index,
        probability=float(probabilities_K[index]),
        pixels_HWC=pixels_HWC,
        found=tuple(
            Evidence(
                method=method,
                heat_hw=heat_hw,
                deletion=deletion(answers, pixels_HWC, heat_hw, index),
                insertion=insertion(answers, pixels_HWC, heat_hw, index),
            )
            for method, heat_hw in maps.items()
        ),
        random=(
            deletion(answers, pixels_HWC, shuffled_hw, index).score,
            insertion(answers, pixels_HWC, shuffled_hw, index).score,
        ),
    )


def explain_picture(subject: Subject, explained: Explained) -> Image.Image:
    """The photo, and each map over it."""
    tiles = [Image.fromarray(explained.pixels_HWC)]
    labels = ["input"]
    for item in explained.found:
        tiles.append(_overlay(explained.pixels_HWC, item.heat_hw))
        labels.append(item.method)
    return grid(
        tiles,
        labels,
        title=f"Why {explained.label} ({explained.probability:.1%})? {subject.title}",
        lines=sentences(explained),
        tile_px=280,
    )


def sentences(explained: Explained) -> list[str]:
    """The scores of each map, and how far the maps agree."""
    lines = [
        f"{item.method}: deletion {item.deletion.score:.3f} (random {explained.random[0]:.3f};"
        f" less is better), insertion {item.insertion.score:.3f}"
        f" (random {explained.random[1]:.3f}; more is better)"
        for item in explained.found
    ]
    if len(explained.found) < 2:
        lines.append("The graph has no class-activation output; occlusion asks for answers alone.")
    elif explained.agreement is not None:
        lines.append(f"The two maps agree with rank correlation {explained.agreement:.2f}.")
    return lines


def explain_json(explained: Explained) -> dict[str, Any]:
    """Label, probability, maps row by row, scores, and the agreement of the methods."""
    return {
        "label": explained.label,
        "index": explained.index,
        "probability": explained.probability,
        "agreement": explained.agreement,
        "random": {"deletion": explained.random[0], "insertion": explained.random[1]},
        "methods": [
            {
                "method": item.method,
                "heat": item.heat_hw.tolist(),
                "deletion": item.deletion.score,
                "insertion": item.insertion.score,
            }
            for item in explained.found
        ],
    }


def _index(labels: Sequence[str], label: str) -> int:
    if label not in labels:
        shown = ", ".join(labels[:20])
        more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
        raise BadRequest(f"no class {label!r}; the classes are {shown}{more}")
    return labels.index(label)


def _overlay(pixels_HWC: NDArray[np.uint8], heat_hw: NDArray[np.float32]) -> Image.Image:
    positive_hw = np.maximum(heat_hw, 0.0)
    peak = float(positive_hw.max())
    scaled_hw = (positive_hw / (peak or 1.0)).astype(np.float32)
    share_HW = spread(scaled_hw, *pixels_HWC.shape[:2])
    colours = np.asarray(coloured(share_HW, 0.0, 1.0, RAMP_RGB), dtype=np.float64)
    cover_HW1 = COVER * np.clip(share_HW, 0.0, 1.0)[:, :, np.newaxis]
    blended_HWC = pixels_HWC * (1.0 - cover_HW1) + colours * cover_HW1
    return Image.fromarray(blended_HWC.round().astype(np.uint8))
