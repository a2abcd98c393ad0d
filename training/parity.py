"""The gates of an export: how far it may be from the network that was trained, on real images, fed as the service feeds it.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.architectures.network import ServedGraph
from models.errors import ExportError
from models.manifest import Parity, Precision, PreprocessSpec
from training.data import Example
from training.evaluate import Runs
from training.images import evaluation_batches
from training.metrics import Floats, Labels

PARITY_TOLERANCE = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime, both fp32: rounding in another order of additions."""
TOLERANCES: Mapping[Precision, float] = {"fp32": PARITY_TOLERANCE, "fp16": 2e-2, "int8": 1.0}
"""Likewise by precision. fp16 has eleven bits; of int8 only accuracy is asked, and the difference is recorded."""
PARITY_IMAGES = 64
BATCH_SIZES = (1, 2, 7, 32)
MOST_LOSS_POINTS: Mapping[Precision, float] = {"fp32": 0.1, "fp16": 0.5}
"""Accuracy on the evaluation images that the export may lose, in percentage points; one image always may, where two classes are as good as tied."""


def check_parity(
    graph: ServedGraph,
    session: Runs,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    precision: Precision = "fp32",
    exporter: str = "torch.onnx dynamo",
) -> Parity:
    """How far *session* is from *graph* on real images, at several batch sizes. Raises `ExportError` naming the worst image."""
    tolerance = TOLERANCES[precision]
    pixels_NHWC = np.concatenate(list(evaluation_batches(examples, spec, PARITY_IMAGES)))
    with torch.inference_mode():
        expected_NK = graph(torch.from_numpy(pixels_NHWC))[1].numpy()
    worst, worst_image, agreement = 0.0, examples[0].name, 1.0
    for size in BATCH_SIZES:
        parts = [session.run(pixels_NHWC[start : start + size], ("probabilities",))["probabilities"] for start in range(0, len(pixels_NHWC), size)]
        found_NK = np.concatenate(parts)
        # NaN is as far away as can be, and no later batch size makes up for it.
        difference_N = np.nan_to_num(np.abs(found_NK - expected_NK), nan=np.inf).max(axis=1)
        index = int(difference_N.argmax())
        if difference_N[index] > worst:
            worst, worst_image = float(difference_N[index]), examples[index].name
        agreement = min(agreement, float((found_NK.argmax(axis=1) == expected_NK.argmax(axis=1)).mean()))
        if precision != "int8":
            _check_answers(expected_NK, found_NK, examples, tolerance=tolerance, size=size)
    if worst > tolerance:
        raise ExportError(
            f"parity gate: a probability of the exported model differs from torch's by {worst:.2e}, "
            f"more than {tolerance:.0e}; worst image: {worst_image}"
        )
    return Parity(
        images=len(examples),
        max_probability_difference=worst,
        top1_agreement=agreement,
        tolerance=tolerance,
        batch_sizes=BATCH_SIZES,
        exporter=exporter,
    )


def _check_answers(expected_NK: Floats, found_NK: Floats, examples: Sequence[Example], *, tolerance: float, size: int) -> None:
    """Raises `ExportError` if an image is answered otherwise whose two likeliest classes are further apart than the tolerance can move them."""
    best_N2 = np.sort(expected_NK, axis=1)[:, -2:]
    clear_N = best_N2[:, 1] - best_N2[:, 0] > 2.0 * tolerance
    # Whatever the difference is, the gate on it tells more; this one is for answers that turned round within the tolerance.
    within_N = np.abs(found_NK - expected_NK).max(axis=1) <= tolerance
    turned = np.flatnonzero(clear_N & within_N & (found_NK.argmax(axis=1) != expected_NK.argmax(axis=1)))
    if len(turned):
        raise ExportError(f"agreement gate: at batch size {size} the exported model answers {examples[turned[0]].name} otherwise than torch does")


def torch_probabilities(graph: ServedGraph, examples: Sequence[Example], spec: PreprocessSpec) -> Floats:
    """What *graph* itself says to every example, [N,K]."""
    with torch.inference_mode():
        return np.concatenate([graph(torch.from_numpy(pixels_NHWC))[1].numpy() for pixels_NHWC in evaluation_batches(examples, spec, 32)])


def check_accuracy(
    expected_NK: Floats, found_NK: Floats, labels_N: Labels, examples: Sequence[Example], *, most_points: float, of: str = "torch"
) -> None:
    """Raises `ExportError` if *found_NK* is right on fewer images than *expected_NK*, by more than *most_points* and by more than one image.

    It names the image that differs most among those that only *of* answers right.
    """
    expected_N, found_N = expected_NK.argmax(axis=1) == labels_N, found_NK.argmax(axis=1) == labels_N
    lost = int(expected_N.sum()) - int(found_N.sum())
    points = 100.0 * lost / len(labels_N)
    if (lost <= 1 and most_points < 1.0) or points <= most_points + 1e-9:
        return
    difference_N = np.where(expected_N & ~found_N, np.abs(found_NK - expected_NK).max(axis=1), 0.0)
    raise ExportError(
        f"accuracy gate: the exported model is right on {found_N.mean():.2%} of {len(labels_N)} images and {of} on {expected_N.mean():.2%}: "
        f"{points:.2f} points are lost, more than {most_points:g}; worst image: {examples[int(difference_N.argmax())].name}"
    )
