"""From a run to a model package, through its gates.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from models.errors import DataError, ExportError
from models.machine import cpu_class
from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, ServedGraph
from models.package.manifest import (
    MODEL_FILE,
    SCHEMA_VERSION,
    SIBLING_FILE,
    Architecture,
    DataFingerprint,
    Manifest,
    Parity,
    Precision,
    PreprocessSpec,
    TensorSpec,
)
from models.package.manifest_file import record_files, write_manifest
from models.package.verify import GoldenImage, write_golden
from models.pixels.preprocess import to_pixels
from models.runtime.session import open_model, open_session
from training.data.index import IMAGES_FILE, make_index, read_index
from training.data.loader import evaluation_batches, limited
from training.data.source import Dataset, Example, list_again, tell_added
from training.evaluate.calibration import abstain_threshold, softmax
from training.evaluate.latency import latency
from training.evaluate.metrics import Floats, fit_temperature
from training.evaluate.predict import Answers, answer, evaluation
from training.evaluate.report.figures import Subject
from training.evaluate.report.report import write_report
from training.export.fp16 import half_precision
from training.export.golden import golden_files
from training.export.int8.candidate import Candidate
from training.export.int8.choose import Int8Options, find_int8
from training.export.int8.search import Found
from training.export.onnx_file import (
    OPSET,
    Exporter,
    described,
    first_that_passes,
    output_specs,
    to_onnx,
)
from training.export.parity import (
    BATCH_SIZES,
    MOST_LOSS_POINTS,
    PARITY_IMAGES,
    PARITY_TOLERANCE,
    check_accuracy,
    check_parity,
    torch_probabilities,
)
from training.fit.loop import preprocess_spec
from training.progress import CONSOLE, shown
from training.runs.provenance import provenance
from training.runs.run import Run

__all__ = ["BATCH_SIZES", "OPSET", "PARITY_TOLERANCE", "check_parity", "export", "to_onnx"]

GOLDEN_TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Looser than parity: other machines have other libjpeg builds and other vector widths, and fewer bits turn a small difference into a larger one."""
DEFAULT_INT8 = Int8Options()


@dataclass(frozen=True)
class _Session:
    """A session that is not yet a package."""

    session: ort.InferenceSession

    def run(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, Floats]:
        return dict(
            zip(outputs, self.session.run(list(outputs), {"image": pixels_NHWC}), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The model that goes into the package, and what there is to tell about it."""

    precision: Precision
    encoded: bytes
    exporter: Exporter
    sibling: bytes | None = None
    """In fp32, of an int8 model."""
    found: Found | None = None
    """The search for int8, if there was one."""


def export(
    run: Run,
    out: Path,
    *,
    precision: Precision = "fp32",
    abstain_accuracy: float | None = None,
    int8: Int8Options = DEFAULT_INT8,
    golden: str | None = None,
    watch: Callable[[Candidate], None] = lambda candidate: None,
) -> Manifest:
    """The package of *run* in the new folder *out*, only if it passes: parity with torch on real
    images, accuracy, then its own verification.

    With *abstain_accuracy*, 0 to 1, its abstain threshold is the smallest at which the validation
    images that are still answered are right on that share; without, it is 0 and every image is
    answered. In int8, *int8* says what the search for it may cost, *watch* sees its candidates, and
    the package carries the fp32 model for other CPUs. *golden* is a folder of golden images, or
    `made`; by default they are held-out images. Raises `ExportError` naming the gate, and leaves
    nothing behind then.
    """
    if out.exists():
        raise ExportError(
            f"{out} exists already; a package is never overwritten: choose another --out, or"
            " remove it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ExportError(f"package folder {out} cannot be made: {error.strerror}") from error
    try:
        manifest = _build(run, staging, precision, abstain_accuracy, int8, golden, watch)
        open_model(staging, allow_fallback=False)
        staging.chmod(0o755)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def _build(
    run: Run,
    folder: Path,
    precision: Precision,
    abstain_accuracy: float | None,
    int8: Int8Options,
    golden: str | None,
    watch: Callable[[Candidate], None],
) -> Manifest:
    spec = preprocess_spec(run.config)
    dataset, data = _images_of(run, spec)
    held_out = dataset.splits[dataset.held_out]
    # First: what cannot be used must not show after minutes of search.
    golden_images = golden_files(held_out, spec, given=golden)
    network = build(run.config.network, num_classes=len(run.record.labels))
    network.load_state_dict(run.load_weights())
    network.eval()
    temperature, threshold = _calibrated(
        network, dataset.splits["val"], spec, abstain_accuracy=abstain_accuracy
    )
    graph = ServedGraph(
        network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=temperature
    ).eval()
    made = _explained(_made(graph, precision, dataset, spec, int8, watch), run, spec, temperature)
    try:
        parity, answers = _gated(graph, made, held_out, spec, int8)
    except ExportError as error:
        if made.precision != "int8":
            raise
        if not int8.keep_fp32:
            advice = "raise --accuracy-budget, or export with --keep-fp32 or --precision fp32"
            raise ExportError(
                f"{error}. Candidates are judged on other images, where it was inside the budget:"
                f" {advice}"
            ) from error
        made = _kept_in_fp32(made, error)
        parity, answers = _gated(graph, made, held_out, spec, int8)
    (folder / MODEL_FILE).write_bytes(made.encoded)
    if made.sibling is not None:
        (folder / SIBLING_FILE).write_bytes(made.sibling)
    write_golden(
        folder, _answered(made, golden_images, spec), tolerance=GOLDEN_TOLERANCES[made.precision]
    )
    figures = evaluation(answers, source=dataset.source, split=dataset.held_out, provider="cpu")
    subject = Subject(
        title=run.path.name,
        labels=run.record.labels,
        spec=spec,
        parity=parity,
        temperature=temperature,
        abstain_threshold=threshold,
        quantisation=made.found,
    )
    write_report(
        folder,
        subject,
        answers=answers,
        evaluation=figures,
        latency=latency(made.encoded, held_out, spec),
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        architecture=Architecture(
            network=run.config.network,
            num_parameters=sum(parameter.numel() for parameter in network.parameters()),
            embedding_size=network.head.embedding_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        lineage=run.record.lineage(run),
        labels=run.record.labels,
        preprocess=spec,
        input=TensorSpec(name="image", dtype="uint8", shape=("N", *spec.crop, 3)),
        outputs=output_specs(folder / MODEL_FILE),
        opset=OPSET,
        precision=made.precision,
        cpu_class=cpu_class() if made.precision == "int8" else None,
        temperature=temperature,
        abstain_threshold=threshold,
        evaluation=figures,
        parity=parity,
        data=data,
        reference=answers.drift_reference(),
        provenance=provenance(),
        files=record_files(folder),
    )
    write_manifest(folder, manifest)
    return manifest


def _images_of(run: Run, spec: PreprocessSpec) -> tuple[Dataset, DataFingerprint]:
    """What can still be read of the images of *run*, and their fingerprint.

    Raises `ExportError` if its data is no longer what it was.
    """
    begun = read_index(run.path)
    now = list_again(run.record.data.source, begun, run.record.labels, run.record.options)
    if not begun:
        raise ExportError(f"{run.path} has no {IMAGES_FILE}, the list of its images: train again")
    try:
        index = make_index(now, spec, most=run.config.max_unreadable_share, begun=begun)
    except DataError as error:
        raise ExportError(f"the data is not what {run.path} was trained on: {error}") from error
    tell_added(begun, now, run.record.unused_names)
    for (_, name), reason in index.broken.items():
        CONSOLE.print(f"[yellow]left out[/] {shown(f'{name}: {reason}')}")
    return index.readable(), index.fingerprint(index.broken)


def _made(
    graph: ServedGraph,
    precision: Precision,
    dataset: Dataset,
    spec: PreprocessSpec,
    int8: Int8Options,
    watch: Callable[[Candidate], None],
) -> _Made:
    """*graph* in *precision*.

    The fp32 model passes its own gate first: what is made of it can be no better.
    """
    examples = limited(dataset.splits[dataset.held_out], PARITY_IMAGES)

    def passes(encoded: bytes, exporter: Exporter) -> None:
        check_parity(graph, _session(encoded, origin=exporter), examples, spec, exporter=exporter)

    encoded, exporter = first_that_passes(lambda exporter: to_onnx(graph, spec, exporter), passes)
    if precision == "fp16":
        return _Made(precision="fp16", encoded=half_precision(encoded), exporter=exporter)
    if precision == "fp32":
        return _Made(precision="fp32", encoded=encoded, exporter=exporter)
    found = find_int8(encoded, dataset, spec, int8, watch)
    if found.taken is not None:
        return _Made(
            precision="int8",
            encoded=found.taken.encoded,
            exporter=exporter,
            sibling=encoded,
            found=found,
        )
    if not int8.keep_fp32:
        raise ExportError(
            f"int8 gate: {found.reason}. Raise --accuracy-budget or --time-budget, or export with"
            " --keep-fp32 or --precision fp32"
        )
    return _Made(precision="fp32", encoded=encoded, exporter=exporter, found=found)


def _gated(
    graph: ServedGraph,
    made: _Made,
    held_out: Sequence[Example],
    spec: PreprocessSpec,
    int8: Int8Options,
) -> tuple[Parity, Answers]:
    """How far *made* is from torch on the held-out images, and what it answers to them.

    Raises `ExportError` if that is not near enough.
    """
    session = _session(made.encoded, origin="export")
    parity = check_parity(
        graph,
        session,
        limited(held_out, PARITY_IMAGES),
        spec,
        precision=made.precision,
        exporter=made.exporter,
    )
    answers = answer(session, held_out, spec, title="evaluate the export")
    expected_NK = torch_probabilities(graph, held_out, spec)
    # The budget of int8 is the user's: every image counts.
    most_points, ties = (
        (int8.accuracy_budget_points, 0.0)
        if made.precision == "int8"
        else (MOST_LOSS_POINTS[made.precision], parity.tolerance)
    )
    check_accuracy(
        expected_NK,
        answers.probabilities_NK,
        answers.labels_N,
        held_out,
        most_points=most_points,
        ties=ties,
    )
    return parity, answers


def _kept_in_fp32(made: _Made, error: ExportError) -> _Made:
    """The fp32 model that int8 was *made* of, and in the search's record why *error* did not let
    int8 through.
    """
    assert made.sibling is not None
    assert made.found is not None
    return dataclasses.replace(
        made,
        precision="fp32",
        encoded=made.sibling,
        sibling=None,
        found=made.found.refused(str(error)),
    )


def _explained(made: _Made, run: Run, spec: PreprocessSpec, temperature: float) -> _Made:
    """*made* with metadata in its files, so that each explains itself without the manifest."""
    origin = provenance()

    def told(encoded: bytes, precision: Precision) -> bytes:
        metadata = {
            "labels": list(run.record.labels),
            "preprocess": spec.model_dump(mode="json"),
            "network": run.config.network,
            "precision": precision,
            "cpu_class": cpu_class() if precision == "int8" else "any",
            "temperature": temperature,
            "input": (
                "image: uint8 [N,H,W,3], RGB, preprocessed as `preprocess` says; normalisation is"
                " inside"
            ),
            "exporter": made.exporter,
            "run": run.path.name,
            "created": origin.created,
            "packages": origin.packages,
        }
        return described(encoded, metadata)

    sibling = None if made.sibling is None else told(made.sibling, "fp32")
    return dataclasses.replace(made, encoded=told(made.encoded, made.precision), sibling=sibling)


def _session(encoded: bytes, *, origin: str) -> _Session:
    return _Session(open_session(encoded, threads=1, provider="cpu", origin=origin))


def _calibrated(
    network: Network,
    validation: Sequence[Example],
    spec: PreprocessSpec,
    *,
    abstain_accuracy: float | None,
) -> tuple[float, float]:
    """Temperature and abstain threshold from the validation images; the split that judges is not
    touched where there is a third one.
    """
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    with torch.inference_mode():
        logits_NK = np.concatenate(
            [
                graph(torch.from_numpy(pixels_NHWC))[0].numpy()
                for pixels_NHWC in evaluation_batches(validation, spec, 32)
            ]
        )
    labels_N = np.array([example.label for example in validation], dtype=np.int64)
    temperature = round(fit_temperature(logits_NK, labels_N), 6)
    if abstain_accuracy is None:
        return temperature, 0.0
    probabilities_NK = softmax(logits_NK, temperature)
    return temperature, abstain_threshold(
        probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N, abstain_accuracy
    )


def _answered(
    made: _Made, files: Sequence[tuple[str, bytes]], spec: PreprocessSpec
) -> list[GoldenImage]:
    """*files*, by name, and what the exported model, and its sibling, says to them."""
    session = _session(made.encoded, origin="golden images")
    sibling = None if made.sibling is None else _session(made.sibling, origin="golden images")
    images = []
    for name, encoded in files:
        pixels_HWC = to_pixels(encoded, spec)
        images.append(
            GoldenImage(
                name,
                encoded,
                _answer(session, pixels_HWC),
                None if sibling is None else _answer(sibling, pixels_HWC),
            )
        )
    return images


def _answer(session: _Session, pixels_HWC: NDArray[np.uint8]) -> tuple[float, ...]:
    probabilities_K = session.run(pixels_HWC[np.newaxis], ("probabilities",))["probabilities"][0]
    return tuple(round(float(value), 8) for value in probabilities_K)
