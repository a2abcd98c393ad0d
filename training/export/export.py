"""From a run to a model package, through its gates."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.errors import DataError, ExportError
from models.machine import cpu_class
from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.package.manifest import (
    MODEL_FILE,
    SCHEMA_VERSION,
    SIBLING_FILE,
    Architecture,
    DataFingerprint,
    Manifest,
    Precision,
    PreprocessSpec,
    TensorSpec,
)
from models.package.manifest_file import record_files, write_manifest
from models.package.verify import GoldenImage, write_golden
from models.pixels.preprocess import to_pixels
from models.runtime.session import open_model
from training.data.index import IMAGES_FILE, make_index, read_index
from training.data.source import Dataset, list_again, tell_added
from training.evaluate.calibration import calibrated
from training.evaluate.latency import latency
from training.evaluate.predictions import evaluation
from training.evaluate.report.figures import Subject
from training.evaluate.report.history import Epoch, History, augmentation_of, augmented_images
from training.evaluate.report.report import write_report
from training.export.golden import golden_files
from training.export.int8.candidate import Candidate
from training.export.int8.choose import Int8Options
from training.export.onnx_file import OPSET, described, output_specs
from training.export.precision import gated, in_precision, kept_in_fp32
from training.export.runners import onnx_runner, torch_runner
from training.fit.loop import preprocess_spec
from training.progress import CONSOLE, shown
from training.runs.provenance import provenance
from training.runs.run import Run

GOLDEN_TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Looser than parity: other machines have other libjpeg builds and other vector widths, and fewer
bits turn a small difference into a larger one."""
DEFAULT_INT8 = Int8Options()


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
    """The package of *run* in the new folder *out*, if it passes its gates.

    The gates are parity with torch on real images, accuracy, and its own verification.
    *abstain_accuracy*, 0 to 1, sets the abstain threshold: the smallest at which the validation
    images that are still answered have that accuracy. Without it every image is answered. *int8*
    says what the search for int8 may cost, and *watch* sees its candidates. An int8 package carries
    the fp32 model for other CPUs. *golden* is a folder of golden images, or `made`; by default they
    are held-out images. Raises `ExportError` naming the gate, and leaves nothing behind then.
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
    spec, labels = preprocess_spec(run.config), run.record.labels
    dataset, data = _images_of(run, spec)
    held_out = dataset.splits[dataset.held_out]
    # First: what cannot be used must not show after minutes of search.
    golden_images = golden_files(held_out, spec, given=golden)
    network = build(run.config.network, num_classes=len(labels))
    network.load_state_dict(run.load_weights())
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    temperature, threshold = calibrated(
        torch_runner(graph), dataset.splits["val"], spec, abstain_accuracy=abstain_accuracy
    )
    graph = ServedGraph(
        network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=temperature
    ).eval()
    made = in_precision(precision, graph, dataset, spec, int8, watch)
    budget = int8.accuracy_budget_points
    try:
        parity, found = gated(graph, made, held_out, spec, int8_budget_points=budget)
    except ExportError as error:
        made = kept_in_fp32(made, error, int8)
        parity, found = gated(graph, made, held_out, spec, int8_budget_points=budget)
    origin = provenance()
    metadata = {
        "labels": list(labels),
        "preprocess": spec.model_dump(mode="json"),
        "network": run.config.network,
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
    files = {MODEL_FILE: (made.precision, made.encoded)}
    if made.sibling is not None:
        files[SIBLING_FILE] = ("fp32", made.sibling)
    answers = []
    for file, (kind, encoded) in files.items():
        validated_on = cpu_class() if kind == "int8" else "any"
        own = metadata | {"precision": kind, "cpu_class": validated_on}
        (folder / file).write_bytes(described(encoded, own))
        answers.append(_answers(encoded, golden_images, spec))
    recorded = ("probabilities", "sibling_probabilities")
    images = [
        GoldenImage(file=name, encoded=encoded, **dict(zip(recorded, of_each, strict=False)))
        for (name, encoded), *of_each in zip(golden_images, *answers, strict=True)
    ]
    write_golden(folder, images, tolerance=GOLDEN_TOLERANCES[made.precision])
    figures = evaluation(found, source=dataset.source, split=dataset.held_out, provider="cpu")
    subject = Subject(
        title=run.path.name,
        labels=labels,
        spec=spec,
        parity=parity,
        temperature=temperature,
        abstain_threshold=threshold,
        quantisation=made.found,
        history=_history(run, dataset, spec),
    )
    timings = latency(made.encoded, held_out, spec)
    write_report(folder, subject, found=found, evaluation=figures, latency=timings)
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
        labels=labels,
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
        reference=found.drift_reference(),
        provenance=origin,
        files=record_files(folder),
    )
    write_manifest(folder, manifest)
    return manifest


def _history(run: Run, dataset: Dataset, spec: PreprocessSpec) -> History | None:
    """How *run* came to its weights, for the report."""
    kept = run.kept()
    if kept is None:
        return None
    names = [field.name for field in dataclasses.fields(Epoch)]
    return History(
        epochs=tuple(Epoch(**{name: line[name] for name in names}) for line in run.metrics()),
        kept=kept["epoch"],
        augmentation=augmentation_of(run.config),
        augmented=augmented_images(dataset.splits["train"], run.config, spec),
    )


def _images_of(run: Run, spec: PreprocessSpec) -> tuple[Dataset, DataFingerprint]:
    """The images of *run* that can still be read, and their fingerprint.

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


def _answers(
    model: bytes, files: Sequence[tuple[str, bytes]], spec: PreprocessSpec
) -> list[tuple[float, ...]]:
    """The probabilities of *model* for each of *files*, one at a time."""
    run = onnx_runner(model, origin="golden images")
    found = [
        run(to_pixels(encoded, spec)[np.newaxis], ("probabilities",))["probabilities"][0]
        for _, encoded in files
    ]
    return [tuple(round(float(value), 8) for value in answer_K) for answer_K in found]
