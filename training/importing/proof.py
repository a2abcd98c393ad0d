"""The source's own answers to photos, through the declared preprocessing, without our graph.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit, softmax

from models.errors import ImportRefused
from training.data.predict import Outputs, Runner
from training.importing.declared import Normalisation
from training.importing.foreign import Answers, Foreign, Tensor
from training.importing.signature import Signature

Floats = NDArray[np.float32]


def model_input(pixels_NHWC: NDArray[np.uint8], signature: Signature, how: Normalisation) -> Tensor:
    """The input that the source's own code would make of *pixels_NHWC*."""
    if how.channels == "grey":
        grey = [np.asarray(Image.fromarray(pixels_HWC).convert("L")) for pixels_HWC in pixels_NHWC]
        channels_NHWC = np.stack(grey)[..., np.newaxis]
    else:
        channels_NHWC = pixels_NHWC[..., ::-1] if how.channels == "bgr" else pixels_NHWC
    values_NHWC = channels_NHWC.astype(np.float64) * how.multiply - how.subtract
    if signature.layout == "nchw":
        values_NHWC = values_NHWC.transpose(0, 3, 1, 2)
    if signature.layout == "nhw":
        values_NHWC = values_NHWC[..., 0]
    return np.ascontiguousarray(values_NHWC.astype(signature.dtype))


def source_scores(foreign: Foreign, signature: Signature) -> Answers:
    """What the source's own runtime gives, [N,K].

    Raises `ImportRefused` if that fails, or has another number of classes than *signature* says.
    """
    ask = foreign.answers or _by_onnx_runtime(foreign, signature)

    def scores(inputs: Tensor) -> Floats:
        found = np.asarray(ask(inputs), dtype=np.float32)
        found_NK = found.reshape(len(inputs), -1)
        if found_NK.shape[1] != signature.classes or not np.isfinite(found_NK).all():
            raise ImportRefused(
                f"{foreign.name} gives {list(found.shape)} for {len(inputs)} images"
                f"{'' if np.isfinite(found).all() else ', some of it NaN or infinite'}; expected"
                f" [{len(inputs)}, {signature.classes}], one score for each label"
            )
        return found_NK

    return scores


def source_runner(
    scores: Answers, signature: Signature, how: Normalisation, *, gives_probabilities: bool
) -> Runner:
    """The source as `predict` runs networks: probabilities for pixels."""

    def run(pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        found_NK = scores(model_input(pixels_NHWC, signature, how))
        if signature.classes == 1:
            yes_N1 = found_NK if gives_probabilities else expit(found_NK)
            found_NK = np.concatenate([1.0 - yes_N1, yes_N1], axis=1)
        elif not gives_probabilities:
            found_NK = softmax(found_NK, axis=1)
        return {"probabilities": found_NK}

    return run


def _by_onnx_runtime(foreign: Foreign, signature: Signature) -> Answers:
    """The source's graph as it came, in batches of the size that it was made for."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(foreign.encoded, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ImportRefused(
            f"{foreign.name} does not load in ONNX Runtime: {_first_line(error)}; export it again"
        ) from error
    # What was exported for a single image is asked one by one, whatever its input says.
    size = signature.batch or 1

    def ask(inputs: Tensor) -> Floats:
        parts = []
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            try:
                [found] = session.run([signature.output], {signature.input: padded})
            except Exception as error:
                raise ImportRefused(
                    f"{foreign.name} does not answer an input of {list(padded.shape)}:"
                    f" {_first_line(error)}"
                ) from error
            parts.append(np.asarray(found)[: len(batch)])
        return np.concatenate(parts)

    return ask


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
