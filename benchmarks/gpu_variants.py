"""The sessions that `benchmarks.gpu_runtime` compares, and how far their answers differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import LoupeError
from models.package.verify import VerifiedPackage
from models.pixels.preprocess import to_pixels
from models.runtime.providers import ANY_SIZE, GpuOptions, Provider, session_sizes
from models.runtime.session import open_session

PRECISIONS = ("fp32", "fp16")
OUTPUT = "probabilities"
NOISE_IMAGES = 64


@dataclass(frozen=True)
class Variant:
    """One provider in one precision."""

    provider: Provider
    precision: str
    sessions: Mapping[int, ort.InferenceSession]
    """By batch size, or one for all, as in `models.runtime.session.Model`."""

    def session(self, batch: int) -> ort.InferenceSession:
        """The session for batches of *batch* images."""
        return self.sessions[ANY_SIZE if ANY_SIZE in self.sessions else batch]

    @property
    def name(self) -> str:
        """Such as `cuda fp16`."""
        return f"{self.provider} {self.precision}"


def open_variants(
    verified: VerifiedPackage,
    *,
    providers: Sequence[Provider],
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> tuple[list[Variant], dict[str, str]]:
    """Warm sessions for each provider and precision of this machine; the reason for each other."""
    height, width = verified.manifest.preprocess.crop
    opened, refused = [], {}
    for provider in providers:
        for precision in PRECISIONS:
            try:
                sessions = {
                    size: open_one(
                        verified,
                        provider,
                        precision,
                        buckets=buckets if size == ANY_SIZE else (size,),
                        threads=threads,
                        gpu=gpu,
                    )
                    for size in session_sizes(provider, buckets)
                }
            except LoupeError as error:
                refused[f"{provider} {precision}"] = str(error)
                continue
            variant = Variant(provider, precision, sessions)
            for bucket in buckets:
                variant.session(bucket).run(
                    [OUTPUT], {"image": np.zeros((bucket, height, width, 3), np.uint8)}
                )
            opened.append(variant)
    return opened, refused


def open_one(
    verified: VerifiedPackage,
    provider: Provider,
    precision: str,
    *,
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> ort.InferenceSession:
    """The session of one provider in one precision, ready for batches of *buckets* images."""
    height, width = verified.manifest.preprocess.crop
    return open_session(
        verified.model if precision == "fp32" else to_fp16(verified.model),
        threads=threads,
        provider=provider,
        origin=f"{verified.path} as {precision}",
        gpu=gpu,
        shapes_NHWC=[(bucket, height, width, 3) for bucket in buckets],
    )


@cache
def to_fp16(model: bytes) -> bytes:
    """The graph with weights and arithmetic in half precision; inputs and outputs stay the same."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: bytes = convert_float_to_float16(
        onnx.load_model_from_string(model), keep_io_types=True
    ).SerializeToString()
    return converted


def compare_answers(
    variants: Sequence[Variant], verified: VerifiedPackage, *, buckets: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Difference of each variant's probabilities from fp32 on the CPU, at the worst bucket.

    Without the CPU, the first variant is the reference.
    """
    pixels_NHWC = images_of(verified)
    reference = next((variant for variant in variants if variant.name == "cpu fp32"), variants[0])
    expected_NK = _answers(reference, pixels_NHWC, bucket=1)
    compared = {}
    for variant in variants:
        found = [_answers(variant, pixels_NHWC, bucket=bucket) for bucket in buckets]
        compared[variant.name] = {
            "max_probability_difference": max(
                float(np.abs(found_NK - expected_NK).max()) for found_NK in found
            ),
            "top1_agreement": min(
                float(np.mean(found_NK.argmax(1) == expected_NK.argmax(1))) for found_NK in found
            ),
            "golden_tolerance": verified.golden_tolerance,
        }
    return compared


def images_of(verified: VerifiedPackage) -> NDArray[np.uint8]:
    """The golden images and noise, as the network sees them."""
    golden = [to_pixels(image.encoded, verified.manifest.preprocess) for image in verified.golden]
    noise_NHWC = np.random.default_rng(0).integers(
        0, 256, size=(NOISE_IMAGES, *golden[0].shape), dtype=np.uint8
    )
    return np.concatenate([np.stack(golden), noise_NHWC])


def _answers(
    variant: Variant, pixels_NHWC: NDArray[np.uint8], *, bucket: int
) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(pixels_NHWC), bucket):
        part_NHWC = pixels_NHWC[start : start + bucket]
        filled_NHWC = np.concatenate(
            [part_NHWC, np.zeros((bucket - len(part_NHWC), *part_NHWC.shape[1:]), np.uint8)]
        )
        parts.append(
            variant.session(bucket).run([OUTPUT], {"image": filled_NHWC})[0][: len(part_NHWC)]
        )
    return np.concatenate(parts)
