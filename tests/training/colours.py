"""A package that tells colours apart without training, rightly or wrongly as told: for what is done
with a model, not for how it is made.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from PIL import Image

from models.package.manifest import MODEL_FILE, PreprocessSpec
from models.package.manifest_file import read_manifest, write_manifest
from models.package.verify import GoldenImage, write_golden
from tests.models.packages import build_package, edit_model, read_golden, record_again
from tests.training.photos import COLOURS

CHANNEL = {"red": 0, "green": 1, "blue": 2}


def colour_package(
    folder: Path,
    *,
    answers: Sequence[str] = tuple(COLOURS),
    labels: Sequence[str] = tuple(COLOURS),
    spec: PreprocessSpec | None = None,
) -> Path:
    """A package in *folder* that answers the class at the position of the strongest channel in
    *answers*: all right by default.
    """
    build_package(folder, labels=labels)

    def weigh(model: onnx.ModelProto) -> None:
        weight_DK = np.zeros((3, len(labels)), np.float32)
        for index, colour in enumerate(answers):
            weight_DK[CHANNEL[colour], index] = 5.0
        for tensor in model.graph.initializer:
            if tensor.name in ("weight", "bias"):
                value = weight_DK if tensor.name == "weight" else np.zeros(len(labels), np.float32)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    edit_model(folder, weigh)
    _answer_golden_again(folder)
    if spec is not None:
        write_manifest(folder, read_manifest(folder).model_copy(update={"preprocess": spec}))
    record_again(folder)
    return folder


def _answer_golden_again(folder: Path) -> None:
    session = ort.InferenceSession(
        (folder / MODEL_FILE).read_bytes(), providers=["CPUExecutionProvider"]
    )
    golden = []
    for image in read_golden(folder):
        pixels_HWC = np.asarray(Image.open(io.BytesIO(image.encoded)))
        found = session.run(["probabilities"], {"image": pixels_HWC[np.newaxis]})[0][0]
        golden.append(
            GoldenImage(
                file=image.file, encoded=image.encoded, probabilities=tuple(map(float, found))
            )
        )
    for path in (folder / "golden").iterdir():
        path.unlink()
    (folder / "golden").rmdir()
    write_golden(folder, golden, tolerance=1e-3)
