"""The networks of a package for small devices: cut down to the answer, as `.onnx` and `.ort`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime as ort

from models.errors import ExportError
from models.package.verify import VerifiedPackage
from models.runtime.answer_graph import answering_part

ORT_LAYOUTS = ("NchwcTransformer",)
"""Optimisers left out of `.ort` files, because their result runs only on the kind of CPU that made
it. Source: ONNX Runtime's own converter."""


def answering_networks(package: VerifiedPackage) -> dict[str, bytes]:
    """Precision -> ONNX model that computes nothing but the answers.

    The package's own precision comes first, then its fp32 sibling.
    """
    models = {package.manifest.precision: package.model}
    if package.sibling is not None:
        models["fp32"] = package.sibling
    return {precision: answering_part(model)[0] for precision, model in models.items()}


def to_ort(model: bytes, *, origin: str) -> bytes:
    """The ONNX *model* in ONNX Runtime's own format, optimised for any CPU.

    It loads faster, and in builds that cannot read ONNX. Raises `ExportError` naming *origin*.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory(prefix="loupe-ort-") as place:
        written = Path(place) / "model.ort"
        options.optimized_model_filepath = str(written)
        try:
            ort.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(ORT_LAYOUTS),
            )
        except Exception as error:
            raise ExportError(f"{origin}: ONNX Runtime cannot write it as .ort: {error}") from error
        return written.read_bytes()
