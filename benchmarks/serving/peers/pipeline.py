"""What each peer does with a photo: Pillow and ONNX Runtime as a careful engineer uses them."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageOps

MODEL_VARIABLE = "BENCHMARK_MODEL"
"""Environment variable with the ONNX file: the peers' commands pass no argument to workers."""
RESIZE, CROP, TOP_K = 256, 224, 5


def open_session(*, threads: int) -> ort.InferenceSession:
    """A session of the benchmark's ONNX file, tuned as ours is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(
        os.environ[MODEL_VARIABLE], options, providers=["CPUExecutionProvider"]
    )


def to_pixels(encoded: bytes) -> NDArray[np.uint8]:
    """Pixels `uint8 [224,224,3]` of an encoded photo."""
    return fit(Image.open(io.BytesIO(encoded)))


def fit(image: Image.Image) -> NDArray[np.uint8]:
    """*image* upright, in RGB, its short side resized to 256, its centre cut out."""
    ImageOps.exif_transpose(image, in_place=True)
    image = image.convert("RGB")
    width, height = image.size
    size = (
        (RESIZE, int(RESIZE * height / width))
        if width <= height
        else (int(RESIZE * width / height), RESIZE)
    )
    left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
    return np.asarray(
        image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + CROP, top + CROP))
    )


def probabilities(
    session: ort.InferenceSession, pixels_NHWC: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Probabilities `float32 [N,K]` of a batch `uint8 [N,H,W,3]`."""
    found: NDArray[np.float32] = session.run(["probabilities"], {"image": pixels_NHWC})[0]
    return found


def answer(probabilities_K: NDArray[np.float32]) -> dict[str, Any]:
    """The likeliest classes of one photo, ready for JSON."""
    order = np.argsort(-probabilities_K)[:TOP_K]
    return {
        "predictions": [
            {"label": f"class {i}", "index": int(i), "probability": float(probabilities_K[i])}
            for i in order
        ]
    }
