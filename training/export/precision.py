"""The network in the precision that the package is to have, and the gates for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import ExportError
from models.networks.network import ServedGraph
from models.package.manifest import Parity, Precision, PreprocessSpec
from training.data.loader import limited
from training.data.predict import predict
from training.data.source import Dataset, Example
from training.evaluate.predictions import Predictions, predictions
from training.export.fp16 import half_precision
from training.export.int8.candidate import Candidate
from training.export.int8.choose import Int8Options, find_int8
from training.export.int8.search import Found
from training.export.onnx_file import Exporter, first_that_passes
from training.export.parity import (
    MOST_LOSS_POINTS,
    PARITY_IMAGES,
    check_accuracy,
    check_parity,
)
from training.export.runners import onnx_runner, torch_runner


@dataclass(frozen=True, kw_only=True)
class Made:
    """The model that goes into the package, and how it was made."""

    precision: Precision
    encoded: bytes
    exporter: Exporter
    sibling: bytes | None = None
    """The fp32 model, of an int8 model."""
    found: Found | None = None
    """The search for int8, if there was one."""


def in_precision(
    precision: Precision,
    graph: ServedGraph,
    dataset: Dataset,
    spec: PreprocessSpec,
    int8: Int8Options,
    watch: Callable[[Candidate], None],
) -> Made:
    """*graph* in *precision*.

    The fp32 model passes its own gate first: what is made of it can be no better.
    """
    examples = limited(dataset.splits[dataset.held_out], PARITY_IMAGES)

    def check(encoded: bytes, exporter: Exporter) -> None:
        run = onnx_runner(encoded, origin=exporter)
        check_parity(torch_runner(graph), run, examples, spec, exporter=exporter)

    encoded, exporter = first_that_passes(graph, spec, check)
    fp32 = Made(precision="fp32", encoded=encoded, exporter=exporter)
    if precision == "fp32":
        return fp32
    if precision == "fp16":
        return dataclasses.replace(fp32, precision="fp16", encoded=half_precision(encoded))
    found = find_int8(encoded, dataset, spec, int8, watch)
    if found.taken is not None:
        return Made(
            precision="int8",
            encoded=found.taken.encoded,
            exporter=exporter,
            sibling=encoded,
            found=found,
        )
    if int8.keep_fp32:
        return dataclasses.replace(fp32, found=found)
    raise ExportError(
        f"int8 gate: {found.reason}. Raise --accuracy-budget or --time-budget, or export with"
        " --keep-fp32 or --precision fp32"
    )


def gated(
    graph: ServedGraph,
    made: Made,
    held_out: Sequence[Example],
    spec: PreprocessSpec,
    *,
    int8_budget_points: float,
) -> tuple[Parity, Predictions]:
    """How far *made* is from torch on the held-out images, and what it says to them.

    Raises `ExportError` if it is too far.
    """
    run, expected = onnx_runner(made.encoded, origin="export"), torch_runner(graph)
    parity = check_parity(
        expected,
        run,
        limited(held_out, PARITY_IMAGES),
        spec,
        precision=made.precision,
        exporter=made.exporter,
    )
    found = predictions(run, held_out, spec, title="evaluate the export")
    _, wanted = predict(expected, held_out, spec, ("probabilities",), title="compare with torch")
    # The budget of int8 is the user's: every image counts.
    most_points, ties = (
        (int8_budget_points, 0.0)
        if made.precision == "int8"
        else (MOST_LOSS_POINTS[made.precision], parity.tolerance)
    )
    check_accuracy(wanted["probabilities"], found, most_points=most_points, ties=ties)
    return parity, found


def kept_in_fp32(made: Made, error: ExportError, int8: Int8Options) -> Made:
    """The fp32 model that int8 was *made* of, with the *error* of int8 in the search's record.

    Raises *error* if *made* is not int8, or if *int8* does not allow it.
    """
    if made.sibling is None or made.found is None:
        raise error
    if not int8.keep_fp32:
        advice = "raise --accuracy-budget, or export with --keep-fp32 or --precision fp32"
        raise ExportError(
            f"{error}. Candidates are judged on other images, where it was inside the budget:"
            f" {advice}"
        ) from error
    found = made.found.refused(str(error))
    return Made(precision="fp32", encoded=made.sibling, exporter=made.exporter, found=found)
