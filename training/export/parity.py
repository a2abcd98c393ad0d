"""The gates of an export: how far it may be from the network that was trained, on real images, fed
as the service feeds it.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import ExportError
from models.networks.network import ServedGraph
from models.package.manifest import Parity, Precision, PreprocessSpec
from training.data.loader import evaluation_batches
from training.data.source import Example
from training.evaluate.metrics import Floats, Labels
from training.evaluate.predict import Runs

PARITY_TOLERANCE = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime, both fp32: rounding in another order of additions."""
TOLERANCES: Mapping[Precision, float] = {"fp32": PARITY_TOLERANCE, "fp16": 2e-2, "int8": 1.0}
"""Likewise by precision. fp16 has eleven bits; of int8 only accuracy is asked, and the difference is recorded."""
PARITY_IMAGES = 64
BATCH_SIZES = (1, 2, 7, 32)
MOST_LOSS_POINTS: Mapping[Precision, float] = {"fp32": 0.1, "fp16": 0.5}
"""Accuracy on the evaluation images that the export may lose, in percentage points, ties apart."""


def check_parity(
    graph: ServedGraph,
    session: Runs,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    precision: Precision = "fp32",
    exporter: str = "torch.onnx dynamo",
) -> Parity:
    """How far *session* is from *graph* on real images, at several batch sizes.

    Raises `ExportError` naming the worst image.

    One gate for probabilities and for top-1 agreement: within the tolerance, an image can be
    answered otherwise only where two classes were tied. Agreement is recorded as it was found.
    """
    tolerance = TOLERANCES[precision]
    # Few images come again and again, so that the largest batch is run in fact.
    shown = list(islice(cycle(examples), max(len(examples), *BATCH_SIZES)))
    pixels_NHWC = np.concatenate(list(evaluation_batches(shown, spec, PARITY_IMAGES)))
    with torch.inference_mode():
        expected_NK = graph(torch.from_numpy(pixels_NHWC))[1].numpy()
    worst, worst_image, agreement = 0.0, examples[0].name, 1.0
    for size in BATCH_SIZES:
        parts = [
            session.run(pixels_NHWC[start : start + size], ("probabilities",))["probabilities"]
            for start in range(0, len(pixels_NHWC), size)
        ]
        found_NK = np.concatenate(parts)
        # NaN is as far away as can be, and no later batch size makes up for it.
        difference_N = np.nan_to_num(np.abs(found_NK - expected_NK), nan=np.inf).max(axis=1)
        index = int(difference_N.argmax())
        if difference_N[index] > worst:
            worst, worst_image = float(difference_N[index]), shown[index].name
        agreement = min(
            agreement,
            float((found_NK.argmax(axis=1) == expected_NK.argmax(axis=1))[: len(examples)].mean()),
        )
    if worst > tolerance:
        raise ExportError(
            f"parity gate: a probability of the exported model differs from torch's by {worst:.2e},"
            f" more than {tolerance:.0e}; worst image: {worst_image}"
        )
    return Parity(
        images=len(examples),
        max_probability_difference=worst,
        top1_agreement=agreement,
        tolerance=tolerance,
        batch_sizes=BATCH_SIZES,
        exporter=exporter,
    )


def _clear(expected_NK: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Of each image, whether its two likeliest classes are further apart than *tolerance*, by which
    both may move, can turn round.
    """
    best_N2 = np.sort(expected_NK, axis=1)[:, -2:]
    return np.asarray(best_N2[:, 1] - best_N2[:, 0] > 2.0 * tolerance)


def torch_probabilities(
    graph: ServedGraph, examples: Sequence[Example], spec: PreprocessSpec
) -> Floats:
    """What *graph* itself says to every example, [N,K]."""
    with torch.inference_mode():
        return np.concatenate(
            [
                graph(torch.from_numpy(pixels_NHWC))[1].numpy()
                for pixels_NHWC in evaluation_batches(examples, spec, 32)
            ]
        )


def check_accuracy(
    expected_NK: Floats,
    found_NK: Floats,
    labels_N: Labels,
    examples: Sequence[Example],
    *,
    most_points: float,
    ties: float,
) -> None:
    """Raises `ExportError` if *found_NK* is right on fewer images than *expected_NK*, by more than
    *most_points*.

    An image whose two likeliest classes lie within twice *ties* of each other counts neither way: a
    precision whose probabilities may differ by that much answers it by chance. The error names the
    image that differs most among those that only torch answers right.
    """
    clear_N = _clear(expected_NK, ties) if ties > 0.0 else np.ones(len(labels_N), bool)
    expected_N, found_N = (
        (expected_NK.argmax(axis=1) == labels_N) & clear_N,
        (found_NK.argmax(axis=1) == labels_N) & clear_N,
    )
    points = 100.0 * (int(expected_N.sum()) - int(found_N.sum())) / len(labels_N)
    # From whole numbers of images: a budget of exactly one point must not fail by a rounding in the
    # sixteenth digit.
    if points <= most_points + 1e-9:
        return
    difference_N = np.where(expected_N & ~found_N, np.abs(found_NK - expected_NK).max(axis=1), 0.0)
    tied = f", without {len(labels_N) - clear_N.sum()} that are tied," if not clear_N.all() else ""
    raise ExportError(
        f"accuracy gate: of {len(labels_N)} images{tied} the exported model answers {found_N.sum()}"
        f" right and torch {expected_N.sum()}: {points:.2f} points are lost, more than"
        f" {most_points:g}; worst image: {examples[int(difference_N.argmax())].name}"
    )
