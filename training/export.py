"""From a run to a model package, through its gates.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from models.architectures.catalogue import build
from models.architectures.network import IMAGENET_MEAN, IMAGENET_STD, OUTPUTS, Network, ServedGraph
from models.errors import ExportError
from models.manifest import MODEL_FILE, SCHEMA_VERSION, Architecture, Manifest, Parity, PreprocessSpec, TensorSpec
from models.manifest_file import record_files, write_manifest
from models.package import GoldenImage, write_golden
from models.preprocess import to_pixels
from models.runtime import open_model, open_session
from training.calibration import abstain_threshold, softmax
from training.data import Example, fingerprint, load_dataset, without_unreadable
from training.evaluate import answer, evaluation
from training.figures import Subject
from training.images import evaluation_batches, limited
from training.latency import latency
from training.loop import preprocess_spec
from training.metrics import Floats, fit_temperature
from training.provenance import provenance
from training.report import write_report
from training.run import Run

OPSET = 20
PARITY_TOLERANCE = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime, both fp32: rounding in another order of additions."""
PARITY_IMAGES = 64
BATCH_SIZES = (1, 2, 7, 32)
GOLDEN_IMAGES = 4
GOLDEN_TOLERANCE = 1e-3
"""Looser than parity: other machines have other libjpeg builds and other vector widths."""


@dataclass(frozen=True)
class _Session:
    """A session that is not yet a package."""

    session: ort.InferenceSession

    def run(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, Floats]:
        return dict(zip(outputs, self.session.run(list(outputs), {"image": pixels_NHWC}), strict=True))


def export(run: Run, out: Path, *, abstain_accuracy: float | None = None) -> Manifest:
    """The package of *run* in the new folder *out*, only if it passes: parity with torch on real images, then its own verification.

    With *abstain_accuracy*, 0 to 1, its abstain threshold is the smallest at which the validation images that are still answered are
    right on that share; without, it is 0 and every image is answered. Raises `ExportError` naming the gate, and leaves nothing behind then.
    """
    if out.exists():
        raise ExportError(f"{out} exists already; a package is never overwritten: choose another --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ExportError(f"package folder {out} cannot be made: {error.strerror}") from error
    try:
        manifest = _build(run, staging, abstain_accuracy)
        open_model(staging, allow_fallback=False)
        staging.chmod(0o755)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def _build(run: Run, folder: Path, abstain_accuracy: float | None) -> Manifest:
    spec = preprocess_spec(run.config)
    dataset, _ = without_unreadable(load_dataset(run.record.data.source, seed=run.config.seed), spec, most=run.config.max_unreadable_share)
    if fingerprint(dataset) != run.record.data:
        raise ExportError(f"the data at {dataset.source} is not what {run.path} was trained on; restore it, or train again")
    network = build(run.config.network, num_classes=len(run.record.labels))
    network.load_state_dict(run.load_weights())
    network.eval()
    temperature, threshold = _calibrated(network, dataset.splits["val"], spec, abstain_accuracy=abstain_accuracy)
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=temperature).eval()
    (folder / MODEL_FILE).write_bytes(to_onnx(graph, spec))
    encoded = (folder / MODEL_FILE).read_bytes()
    session = _Session(open_session(encoded, threads=1, provider="cpu", origin=str(run.path)))
    held_out = dataset.splits[dataset.held_out]
    parity = check_parity(graph, session, limited(held_out, PARITY_IMAGES), spec)
    answers = answer(session, held_out, spec, title="evaluate the export")
    write_golden(folder, _golden_images(session, held_out, spec), tolerance=GOLDEN_TOLERANCE)
    figures = evaluation(answers, source=dataset.source, split=dataset.held_out, provider="cpu")
    subject = Subject(title=run.path.name, labels=run.record.labels, spec=spec, parity=parity, temperature=temperature, abstain_threshold=threshold)
    write_report(folder, subject, answers=answers, evaluation=figures, latency=latency(encoded, held_out, spec))
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
        outputs=_output_specs(folder / MODEL_FILE),
        opset=OPSET,
        precision="fp32",
        cpu_class=None,
        temperature=temperature,
        abstain_threshold=threshold,
        evaluation=figures,
        parity=parity,
        data=run.record.data,
        reference=answers.drift_reference(),
        provenance=provenance(),
        files=record_files(folder),
    )
    write_manifest(folder, manifest)
    return manifest


def to_onnx(graph: ServedGraph, spec: PreprocessSpec) -> bytes:
    """*graph* as one ONNX file with a dynamic batch, checked by ONNX's own checker."""
    # A batch of 2: the exporter takes a size of 1 for a constant.
    example = torch.zeros((2, *spec.crop, 3), dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    stream = io.BytesIO()
    onnx.save_model(model, stream)
    return stream.getvalue()


def check_parity(graph: ServedGraph, session: _Session, examples: Sequence[Example], spec: PreprocessSpec) -> Parity:
    """How far *session* is from *graph* on real images, at several batch sizes. Raises `ExportError` naming the worst image."""
    pixels_NHWC = np.concatenate(list(evaluation_batches(examples, spec, PARITY_IMAGES)))
    with torch.inference_mode():
        expected_NK = graph(torch.from_numpy(pixels_NHWC))[1].numpy()
    worst, worst_image, found_NK = 0.0, examples[0].name, expected_NK
    for size in BATCH_SIZES:
        parts = [session.run(pixels_NHWC[start : start + size], ("probabilities",))["probabilities"] for start in range(0, len(pixels_NHWC), size)]
        found_NK = np.concatenate(parts)
        # NaN is as far away as can be, and no later batch size makes up for it.
        difference_N = np.nan_to_num(np.abs(found_NK - expected_NK), nan=np.inf).max(axis=1)
        index = int(difference_N.argmax())
        if difference_N[index] > worst:
            worst, worst_image = float(difference_N[index]), examples[index].name
    if worst > PARITY_TOLERANCE:
        raise ExportError(
            f"parity gate: a probability of the exported model differs from torch's by {worst:.2e}, "
            f"more than {PARITY_TOLERANCE:.0e}; worst image: {worst_image}"
        )
    agreement = float((found_NK.argmax(axis=1) == expected_NK.argmax(axis=1)).mean())
    return Parity(
        images=len(examples),
        max_probability_difference=worst,
        top1_agreement=agreement,
        tolerance=PARITY_TOLERANCE,
        batch_sizes=BATCH_SIZES,
        exporter="torch.onnx dynamo",
    )


def _calibrated(network: Network, validation: Sequence[Example], spec: PreprocessSpec, *, abstain_accuracy: float | None) -> tuple[float, float]:
    """Temperature and abstain threshold from the validation images; the split that judges is not touched where there is a third one."""
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    with torch.inference_mode():
        logits_NK = np.concatenate([graph(torch.from_numpy(pixels_NHWC))[0].numpy() for pixels_NHWC in evaluation_batches(validation, spec, 32)])
    labels_N = np.array([example.label for example in validation], dtype=np.int64)
    temperature = round(fit_temperature(logits_NK, labels_N), 6)
    if abstain_accuracy is None:
        return temperature, 0.0
    probabilities_NK = softmax(logits_NK, temperature)
    return temperature, abstain_threshold(probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N, abstain_accuracy)


def _golden_images(session: _Session, examples: Sequence[Example], spec: PreprocessSpec) -> list[GoldenImage]:
    """A few held-out images of different classes, as they are, and what the exported model says to them."""
    images = []
    for index, example in enumerate(limited(examples, GOLDEN_IMAGES)):
        encoded = example.read()
        pixels_HWC = to_pixels(encoded, spec)
        probabilities_K = session.run(pixels_HWC[np.newaxis], ("probabilities",))["probabilities"][0]
        name = f"{index}{Path(example.name).suffix.lower()}"
        images.append(GoldenImage(name, encoded, tuple(round(float(value), 8) for value in probabilities_K)))
    return images


def _output_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The graph's outputs as it declares them, with the legend's letter for the batch."""
    graph = onnx.load(path).graph
    return tuple(
        TensorSpec(name=value.name, dtype="float32", shape=tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim))
        for value in graph.output
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own insides; what matters is decided by the gates."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
