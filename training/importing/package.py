"""A verified package from a foreign model: wrapped, compared with its source, judged.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from models.errors import ConfigError, ExportError, ImportRefused
from models.machine import cpu_class
from models.package.manifest import (
    MODEL_FILE,
    SCHEMA_VERSION,
    Architecture,
    Evaluation,
    Lineage,
    Manifest,
    Parity,
    Precision,
    PreprocessSpec,
    TensorSpec,
)
from models.package.manifest_file import record_files, write_manifest
from models.package.verify import GoldenImage, write_golden
from models.runtime.session import open_model
from training.data.loader import evaluation_batches, limited
from training.data.source import Example
from training.evaluate.latency import latency
from training.evaluate.predictions import Predictions, evaluation, predictions
from training.evaluate.report.bare import write_bare_report
from training.evaluate.report.figures import Subject
from training.evaluate.report.report import write_report
from training.export.export import GOLDEN_TOLERANCES, golden_answers
from training.export.golden import MADE, golden_files
from training.export.onnx_file import described, output_specs
from training.export.parity import PARITY_IMAGES, check_parity
from training.export.runners import onnx_runner
from training.importing.activation_maps import with_looks_inside
from training.importing.declared import (
    USUAL,
    Declared,
    Normalisation,
    normalisation,
    preprocess_spec,
)
from training.importing.foreign import Foreign
from training.importing.images import Images
from training.importing.onnx_graph import nodes_of
from training.importing.proof import model_input, source_runner, source_scores
from training.importing.signature import Signature, signature_of
from training.importing.wrapping import are_probabilities, wrapped
from training.runs.provenance import provenance

NUMBERS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8}
"""Types of weights. Whole numbers of 64 bits are shapes."""
QUANTISED = {"QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul"}


@dataclass(frozen=True, kw_only=True)
class Understood:
    """A foreign model whose input and output are known."""

    foreign: Foreign
    labels: tuple[str, ...]
    signature: Signature
    spec: PreprocessSpec
    how: Normalisation


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a foreign model."""

    manifest: Manifest
    gives_probabilities: bool
    why_no_embedding: str
    """Empty if there is one."""
    why_no_maps: str


def understood(foreign: Foreign, labels: tuple[str, ...] | None, declared: Declared) -> Understood:
    """*foreign* with *labels*, or its own, and its input as *declared* over what itself says.

    Raises `ImportRefused` or `ConfigError` for what is missing or contradicts the graph.
    """
    names = labels or foreign.labels
    if names is None:
        raise ConfigError(
            f"{foreign.name} does not name its classes; give them in its order with --labels FILE"
        )
    said = declared.over(foreign.declared)
    model = onnx.ModelProto.FromString(foreign.encoded)
    signature = signature_of(model, said, labels=len(names))
    if signature.dtype != "uint8" and (said.range, said.mean, said.std) == (None, None, None):
        raise ConfigError(
            f"{foreign.name} does not say how it wants its pixels; say --preprocess with one of"
            f" {', '.join(USUAL)} or a TOML file, or find it out with --find-preprocess and"
            " labelled images"
        )
    if signature.dtype == "uint8":
        said = said.over(Declared(range="0..255"))
    size = signature.size(said)
    return Understood(
        foreign=foreign,
        labels=names,
        signature=signature,
        spec=preprocess_spec(said.model_copy(update={"size": size})),
        how=normalisation(said, channels=signature.channels),
    )


def import_model(found: Understood, images: Images, out: Path) -> Imported:
    """The package of *found* in the new folder *out*, if it answers as its source does.

    Raises `ExportError` or `ImportRefused` with the reason, and leaves nothing behind then.
    """
    if out.exists():
        raise ExportError(
            f"{out} exists already; a package is never overwritten: choose another --out, or"
            " remove it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        imported = _build(found, images, staging, title=out.name)
        open_model(staging, allow_fallback=False)
        staging.chmod(0o755)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return imported


def _build(found: Understood, images: Images, folder: Path, *, title: str) -> Imported:
    golden = golden_files(images.examples, found.spec, given=None if images.examples else MADE)
    examples = images.examples or [Example(name, 0, encoded=encoded) for name, encoded in golden]
    scores = source_scores(found.foreign, found.signature)
    gives_probabilities = are_probabilities(scores(_sample(found, examples)))
    model, why_no_embedding, why_no_maps = _graph(found, gives_probabilities)
    precision, encoded = _precision(model), model.SerializeToString()
    run = onnx_runner(encoded, origin=found.foreign.name)
    parity = check_parity(
        source_runner(scores, found.signature, found.how, gives_probabilities=gives_probabilities),
        run,
        limited(examples, PARITY_IMAGES),
        found.spec,
        precision="fp16" if precision == "fp16" else "fp32",
        exporter=f"loupe import, from {found.foreign.kind}",
        source=found.foreign.runtime,
    )
    answered = (
        predictions(run, images.examples, found.spec, embedding=not why_no_embedding)
        if images.examples
        else None
    )
    (folder / MODEL_FILE).write_bytes(described(encoded, _metadata(found, precision)))
    answers = golden_answers(encoded, golden, found.spec)
    pairs = zip(golden, answers, strict=True)
    write_golden(
        folder,
        [GoldenImage(file=name, encoded=it, probabilities=answer) for (name, it), answer in pairs],
        tolerance=GOLDEN_TOLERANCES[precision],
    )
    figures = _write_report(found, folder, images, answered, parity, encoded, title=title)
    manifest = _manifest(found, folder, model, images, answered, parity, figures, precision)
    write_manifest(folder, manifest)
    return Imported(
        manifest=manifest,
        gives_probabilities=gives_probabilities,
        why_no_embedding=why_no_embedding,
        why_no_maps=why_no_maps,
    )


def _sample(found: Understood, examples: Sequence[Example]) -> np.ndarray:
    """The source's input for a few images."""
    pixels_NHWC = next(iter(evaluation_batches(examples[:8], found.spec, 8)))
    return model_input(pixels_NHWC, found.signature, found.how)


def _graph(found: Understood, gives_probabilities: bool) -> tuple[ModelProto, str, str]:
    """The package's graph, and why it has no embedding and no maps.

    Raises `ImportRefused` if it does not run for several images.
    """
    source = onnx.ModelProto.FromString(found.foreign.encoded)
    model = wrapped(
        source,
        found.signature,
        found.how,
        size=found.spec.crop,
        gives_probabilities=gives_probabilities,
    )
    try:
        model, why_no_embedding, why_no_maps = with_looks_inside(model)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        onnx_runner(model.SerializeToString(), origin=found.foreign.name)(
            np.zeros((2, *found.spec.crop, 3), dtype=np.uint8), ("probabilities",)
        )
    except Exception as error:
        if found.signature.batch is None:
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ImportRefused(
            f"{found.foreign.name} was exported for {found.signature.batch} image"
            f"{'' if found.signature.batch == 1 else 's'} at a time, and that is written into its"
            f" nodes ({first.strip()[:200]}); export it with a dynamic batch"
        ) from error
    return model, why_no_embedding, why_no_maps


def _precision(model: ModelProto) -> Precision:
    if any(node.op_type in QUANTISED for node in nodes_of(model.graph)):
        return "int8"
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def _metadata(found: Understood, precision: Precision) -> dict[str, object]:
    origin = provenance()
    return {
        "labels": list(found.labels),
        "preprocess": found.spec.model_dump(mode="json"),
        "network": found.foreign.network,
        "temperature": 1.0,
        "input": (
            "image: uint8 [N,H,W,3], RGB, preprocessed as `preprocess` says; normalisation is"
            " inside"
        ),
        "exporter": f"loupe import, from {found.foreign.kind}",
        "run": "",
        "created": origin.created,
        "packages": origin.packages,
        "precision": precision,
        "cpu_class": cpu_class() if precision == "int8" else "any",
    }


def _write_report(
    found: Understood,
    folder: Path,
    images: Images,
    answered: Predictions | None,
    parity: Parity,
    encoded: bytes,
    *,
    title: str,
) -> Evaluation | None:
    """The report, and the figures in it; None if nothing was evaluated."""
    subject = Subject(
        title=title,
        labels=found.labels,
        spec=found.spec,
        parity=parity,
        temperature=1.0,
        abstain_threshold=0.0,
        source=found.foreign.runtime,
    )
    if answered is None or not images.labelled:
        write_bare_report(folder, subject)
        return None
    figures = evaluation(answered, source=images.source, split=images.split, provider="cpu")
    timings = latency(encoded, images.examples, found.spec)
    write_report(folder, subject, found=answered, evaluation=figures, latency=timings)
    return figures


def _manifest(
    found: Understood,
    folder: Path,
    model: ModelProto,
    images: Images,
    answered: Predictions | None,
    parity: Parity,
    figures: Evaluation | None,
    precision: Precision,
) -> Manifest:
    outputs = output_specs(folder / MODEL_FILE)
    sizes = {output.name: output.shape[1] for output in outputs}
    mean, std = found.how.manifest_values()
    embedding = sizes.get("embedding")
    own = onnx.ModelProto.FromString(found.foreign.encoded).graph.initializer
    weights = sum(int(np.prod(tensor.dims)) for tensor in own if tensor.data_type in NUMBERS)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        architecture=Architecture(
            network=found.foreign.network,
            num_parameters=max(1, weights),
            embedding_size=embedding if isinstance(embedding, int) else None,
            mean=mean,
            std=std,
        ),
        lineage=Lineage(
            weights="imported",
            identifier=found.foreign.name,
            sha256=found.foreign.sha256,
            run=found.foreign.kind,
            seed=0,
        ),
        labels=found.labels,
        preprocess=found.spec,
        input=TensorSpec(name="image", dtype="uint8", shape=("N", *found.spec.crop, 3)),
        outputs=outputs,
        opset=model.opset_import[0].version,
        precision=precision,
        cpu_class=cpu_class() if precision == "int8" else None,
        temperature=1.0,
        abstain_threshold=0.0,
        evaluation=figures,
        parity=parity,
        data=images.fingerprint(found.labels),
        reference=answered.drift_reference() if answered else None,
        provenance=provenance(),
        files=record_files(folder),
    )
