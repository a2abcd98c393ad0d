"""The signals that drift is measured on, and their reference from the evaluation images.

Letters used in shapes: N images, H and W pixels, K classes, D embedding features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import DriftReference, Histogram

Floats = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue. Source: ITU-R BT.601."""
UNIT_EDGES = tuple(round(step / 20, 2) for step in range(21))
SHARPNESS_EDGES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
DISTANCE_EDGES = tuple(round(step / 10, 1) for step in range(21))

SHIFTED = 0.25
"""Population stability index above which images are called shifted.

Source: the rule of thumb of credit scoring (below 0.1 is stable).
"""
LEAST_IMAGES = 100
"""Fewer images are too few to compare distributions."""
GROUP_SHARE = 0.05
"""Bins with a smaller share of the reference are counted together with their neighbours.

So there are some 20 groups at most, also with a thousand classes.
"""
UNSEEN = 0.5
"""Added to each group's count, because the logarithm of 0 is infinite.

Source: the estimate of Krichevsky and Trofimov.
"""


def brightness(pixels_HWC: NDArray[np.uint8]) -> float:
    """Mean luma of `uint8 [H,W,3]`, 0 to 1."""
    return float((pixels_HWC.reshape(-1, 3).mean(axis=0, dtype=np.float64) @ LUMA) / 255.0)


def sharpness(pixels_HWC: NDArray[np.uint8]) -> float:
    """Standard deviation of the Laplacian of the luma of `uint8 [H,W,3]`; low for a blurred image.

    The Laplacian is of 4 neighbours, the luma of 0 to 1.
    """
    luma_HW = pixels_HWC.astype(np.float32) @ (LUMA / 255.0)
    if min(luma_HW.shape) < 3:
        return 0.0
    inner = luma_HW[1:-1, 1:-1]
    laplacian = (
        luma_HW[:-2, 1:-1]
        + luma_HW[2:, 1:-1]
        + luma_HW[1:-1, :-2]
        + luma_HW[1:-1, 2:]
        - 4.0 * inner
    )
    return float(laplacian.std())


def embedding_distance(embedding_ND: Floats, mean_D: Floats) -> Floats:
    """Cosine distance [N] of each embedding to *mean_D*, 0 to 2."""
    norms_N = np.linalg.norm(embedding_ND, axis=1) * np.linalg.norm(mean_D)
    cosine_N = (embedding_ND @ mean_D) / np.maximum(norms_N, 1e-12)
    return np.asarray(np.clip(1.0 - cosine_N, 0.0, 2.0), dtype=np.float32)


def reference(
    *,
    probabilities_NK: Floats,
    embedding_ND: Floats | None,
    brightness_N: Sequence[float],
    sharpness_N: Sequence[float],
) -> DriftReference:
    """The statistics of a set of images that the model has answered.

    Without embeddings the mean is empty, and so is the histogram of distances to it.
    """
    none_ND = np.zeros((0, 0), dtype=np.float32)
    found_ND = none_ND if embedding_ND is None else embedding_ND
    mean_D = found_ND.mean(axis=0) if found_ND.size else none_ND.sum(axis=0)
    predicted_N = probabilities_NK.argmax(axis=1)
    return DriftReference(
        count=len(probabilities_NK),
        predicted=tuple(np.bincount(predicted_N, minlength=probabilities_NK.shape[1]).tolist()),
        confidence=histogram(probabilities_NK.max(axis=1), UNIT_EDGES),
        brightness=histogram(brightness_N, UNIT_EDGES),
        sharpness=histogram(sharpness_N, SHARPNESS_EDGES),
        embedding_mean=tuple(round(float(value), 6) for value in mean_D),
        embedding_distance=histogram(embedding_distance(found_ND, mean_D), DISTANCE_EDGES),
    )


def counts(
    reference: DriftReference,
    *,
    probabilities_NK: Floats,
    embedding_ND: Floats | None,
    samples: Sequence[NDArray[np.uint8]],
) -> dict[str, list[int]]:
    """Signal -> how many images fall into each bin of *reference*.

    Brightness and sharpness are measured on *samples*, pixels `uint8 [H,W,3]`.
    """
    values: dict[str, Sequence[float] | Floats] = {
        "confidence": probabilities_NK.max(axis=1, initial=0.0),
        "brightness": [brightness(pixels_HWC) for pixels_HWC in samples],
        "sharpness": [sharpness(pixels_HWC) for pixels_HWC in samples],
    }
    mean_D = np.asarray(reference.embedding_mean, dtype=np.float32)
    # A manifest need not have a mean of this size: then there is nothing to compare with.
    if embedding_ND is not None and embedding_ND.shape[1] == len(mean_D):
        values["embedding_distance"] = embedding_distance(embedding_ND, mean_D)
    return {
        signal: list(histogram(found, getattr(reference, signal).edges).counts)
        for signal, found in values.items()
    }


def histogram(values: Sequence[float] | Floats, edges: Sequence[float]) -> Histogram:
    """Counts of *values* between *edges*; values outside count in the first or last bin."""
    inside = np.clip(np.asarray(values, dtype=np.float64), edges[0], edges[-1])
    counts, _ = np.histogram(inside, bins=np.asarray(edges))
    return Histogram(edges=tuple(edges), counts=tuple(int(count) for count in counts))


def expected_counts(reference: DriftReference) -> dict[str, list[int]]:
    """Signal -> what *reference* counted in each bin."""
    histograms = {
        name: list(getattr(reference, name).counts)
        for name in ("confidence", "brightness", "sharpness", "embedding_distance")
    }
    return {"predicted": list(reference.predicted), **histograms}


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of the counts *found* against *expected*, less that of chance.

    It is 0 for the same distribution, and an alarm above `SHIFTED`. Both are counts of the same
    bins, neither all zero. For two samples of one distribution the index has an expectation of
    (groups - 1)(1 / n + 1 / m), which is subtracted: with 200 images against 100 it is 0.28, a
    false alarm. Source: Yurdakul, Statistical Properties of Population Stability Index, 2018.
    """
    groups = _groups(expected)
    expected_G, found_G = (
        np.add.reduceat(np.asarray(counts, dtype=np.float64), groups)
        for counts in (expected, found)
    )
    chance = (len(groups) - 1) * (1.0 / expected_G.sum() + 1.0 / found_G.sum())
    p_G, q_G = (
        (counts_G + UNSEEN) / (counts_G.sum() + UNSEEN * len(groups))
        for counts_G in (expected_G, found_G)
    )
    return max(0.0, float(np.sum((q_G - p_G) * np.log(q_G / p_G)) - chance))


def _groups(expected: Sequence[int]) -> list[int]:
    """Where each group begins. Rare bins are grouped until they hold `GROUP_SHARE` together."""
    least = GROUP_SHARE * sum(expected)
    starts: list[int] = []
    gathered = least
    for index, count in enumerate(expected):
        if count >= least or gathered >= least:
            starts.append(index)
            gathered = 0.0
        gathered += count
    return starts
