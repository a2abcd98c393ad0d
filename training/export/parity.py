"""The gates of an export: how far it may be from the trained network, on real images.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from models.errors import ExportError
from models.package.manifest import Parity, Precision, PreprocessSpec
from training.data.loader import evaluation_batches
from training.data.predict import Runner
from training.data.source import Example
from training.evaluate.metrics import Floats
from training.evaluate.predictions import Predictions

PARITY_TOLERANCE = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime, both fp32.

They add in different orders, and so round differently.
"""
TOLERANCES: Mapping[Precision, float] = {"fp32": PARITY_TOLERANCE, "fp16": 2e-2, "int8": 1.0}
"""Likewise by precision. fp16 has eleven bits. int8 has to keep only its accuracy."""
PARITY_IMAGES = 64
BATCH_SIZES = (1, 2, 7, 32)
MOST_LOSS_POINTS: Mapping[Precision, float] = {"fp32": 0.1, "fp16": 0.5}
"""Accuracy that the export may lose, in percentage points, not counting ties."""


def check_parity(
    expected: Runner,
    run: Runner,
    examples: Sequence[Example],
    spec: PreprocessSpec,
    *,
    precision: Precision = "fp32",
    exporter: str = "torch.onnx dynamo",
    source: str = "torch",
) -> Parity:
    """How far *run* is from *expected* on real images, at several batch sizes.

    Raises `ExportError` naming the worst image. *source* is what *expected* is, for messages.

    One gate for probabilities and for top-1 agreement: within the tolerance, an image can get
    another answer only where two classes were tied. The agreement is recorded.
    """
    tolerance = TOLERANCES[precision]
    # A few images are repeated, so that the largest batch is really run.
    shown = list(islice(cycle(examples), max(len(examples), *BATCH_SIZES)))
    pixels_NHWC = np.concatenate(list(evaluation_batches(shown, spec, PARITY_IMAGES)))
    expected_NK = expected(pixels_NHWC, ("probabilities",))["probabilities"]
    worst, worst_image, agreement = 0.0, examples[0].name, 1.0
    for size in BATCH_SIZES:
        found_NK = np.concatenate(
            [
                run(pixels_NHWC[start : start + size], ("probabilities",))["probabilities"]
                for start in range(0, len(pixels_NHWC), size)
            ]
        )
        # NaN is as far away as can be, and no later batch size makes up for it.
        difference_N = np.nan_to_num(np.abs(found_NK - expected_NK), nan=np.inf).max(axis=1)
        index = int(difference_N.argmax())
        if difference_N[index] > worst:
            worst, worst_image = float(difference_N[index]), shown[index].name
        same_N = found_NK.argmax(axis=1) == expected_NK.argmax(axis=1)
        agreement = min(agreement, float(same_N[: len(examples)].mean()))
    if worst > tolerance:
        raise ExportError(
            f"parity gate: a probability of the exported model differs from {source}'s by"
            f" {worst:.2e}, more than {tolerance:.0e}; worst image: {worst_image}"
        )
    return Parity(
        images=len(examples),
        max_probability_difference=worst,
        top1_agreement=agreement,
        tolerance=tolerance,
        batch_sizes=BATCH_SIZES,
        exporter=exporter,
    )


def check_accuracy(
    expected_NK: Floats, found: Predictions, *, most_points: float, ties: float
) -> None:
    """Raises `ExportError` if *found* has more than *most_points* less accuracy than *expected_NK*.

    With *ties*, images do not count whose two likeliest classes are within twice *ties* of each
    other: a precision whose probabilities may differ by that much answers them by chance. The error
    names the image that differs most among those that only torch answers right.
    """
    labels_N, found_NK = found.labels_N, found.probabilities_NK
    best_N2 = np.sort(expected_NK, axis=1)[:, -2:]
    clear_N = (best_N2[:, 1] - best_N2[:, 0] > 2.0 * ties) | (ties == 0.0)
    expected_N = (expected_NK.argmax(axis=1) == labels_N) & clear_N
    found_N = found.correct_N & clear_N
    points = 100.0 * (int(expected_N.sum()) - int(found_N.sum())) / len(labels_N)
    # From whole numbers of images: a budget of exactly one point must not fail by a rounding error.
    if points <= most_points + 1e-9:
        return
    difference_N = np.where(expected_N & ~found_N, np.abs(found_NK - expected_NK).max(axis=1), 0.0)
    tied = f", without {len(labels_N) - clear_N.sum()} that are tied," if not clear_N.all() else ""
    raise ExportError(
        f"accuracy gate: of {len(labels_N)} images{tied} the exported model answers {found_N.sum()}"
        f" right and torch {expected_N.sum()}: {points:.2f} points are lost, more than"
        f" {most_points:g}; worst image: {found.examples[int(difference_N.argmax())].name}"
    )
