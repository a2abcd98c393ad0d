"""`loupe inspect explain`: which parts of a photo an answer rests on, by three methods."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import PackageError
from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.heatmap import heatmap, overlay
from models.inspection.saliency import (
    Curve,
    agreement,
    averaged,
    blurred,
    deletion,
    insertion,
    occlusion,
)
from training.inside.pictures import Sheet, drawn
from training.inside.subject import InspectedNetwork, class_index, photo_pixels

ANSWER, CAM = "probabilities", "cam"
GRID = 28
"""Cells along each side of a map by gradients, which are too fine to look at."""
CAM_METHOD = "class activation"


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

    why_no_gradients: str
    """Empty: integrated gradients are among the maps."""

    @property
    def agreement(self) -> dict[tuple[str, str], float]:
        """Rank correlation of each two methods; of maps with a single cell there is none."""
        found = {
            (first.method, second.method): agreement(first.heat_hw, second.heat_hw)
            for first, second in combinations(self.found, 2)
        }
        return {pair: value for pair, value in found.items() if value is not None}


def explain(subject: InspectedNetwork, image: Path, label: str | None) -> Explained:
    """The evidence for class *label*, or for the answer, in the photo *image*.

    Raises `BadRequest` for an unknown label, and `RequestError` for an image that cannot be used.
    """
    assert subject.model is not None
    pixels_HWC = photo_pixels(image, subject.spec)
    session = session_with_outputs(subject.model, [ANSWER])

    def answers(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return feature_maps(session, pixels_NHWC)[0]

    probabilities_K = answers(pixels_HWC[np.newaxis])[0]
    index = int(probabilities_K.argmax()) if label is None else class_index(subject.labels, label)
    maps = {"occlusion": occlusion(answers, pixels_HWC, index)}
    if CAM in subject.outputs:
        cam = session_with_outputs(subject.model, [CAM])
        maps = {CAM_METHOD: feature_maps(cam, pixels_HWC[np.newaxis])[0][0, index], **maps}
    gradients_hw, why_not = _integrated(subject, pixels_HWC, index)
    if gradients_hw is not None:
        maps["integrated gradients"] = gradients_hw
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
        why_no_gradients=why_not,
    )


def explain_picture(subject: InspectedNetwork, explained: Explained) -> Image.Image:
    """The photo, and each map over it."""
    return drawn(explain_sheet(subject, explained))


def explain_sheet(subject: InspectedNetwork, explained: Explained) -> Sheet:
    """The photo, and each map over it."""
    tiles = [Image.fromarray(explained.pixels_HWC)]
    labels = ["input"]
    for item in explained.found:
        scaled_hw = heatmap(item.heat_hw[np.newaxis], 0).heat_hw
        tiles.append(overlay(explained.pixels_HWC, scaled_hw))
        labels.append(item.method)
    return Sheet(
        tiles=tiles,
        labels=labels,
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
    if explained.agreement:
        pairs = [
            f"{first} and {second} {value:.2f}"
            for (first, second), value in explained.agreement.items()
        ]
        lines.append(f"Rank correlation of the maps: {'; '.join(pairs)}.")
    if CAM_METHOD not in {item.method for item in explained.found}:
        lines.append("The graph has no class-activation output.")
    lines += [
        f"The map of {item.method} has a single cell, so it says nothing about places."
        for item in explained.found
        if item.heat_hw.size == 1
    ]
    return [*lines, *([explained.why_no_gradients] if explained.why_no_gradients else [])]


def explain_json(explained: Explained) -> dict[str, Any]:
    """Label, probability, maps row by row, scores, and the agreement of the methods."""
    return {
        "label": explained.label,
        "index": explained.index,
        "probability": explained.probability,
        "agreement": [
            {"methods": pair, "rank_correlation": value}
            for pair, value in explained.agreement.items()
        ],
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


def _integrated(
    subject: InspectedNetwork, pixels_HWC: NDArray[np.uint8], index: int
) -> tuple[NDArray[np.float32] | None, str]:
    """Integrated gradients on a grid of `GRID` cells, or the reason why there are none."""
    from models.networks.onnx_in_torch import OnnxNetwork
    from training.inside.gradients import LOGITS, integrated_gradients

    assert subject.model is not None
    if LOGITS not in subject.outputs:
        return None, f"No integrated gradients: the graph has no output {LOGITS!r}."
    try:
        network = OnnxNetwork(subject.model, [LOGITS])
    except PackageError as error:
        return None, f"No integrated gradients: {error}."
    moved_HW = integrated_gradients(network, pixels_HWC, blurred(pixels_HWC), index)
    return averaged(moved_HW, GRID), ""
