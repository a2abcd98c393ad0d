"""A verified package in a session of ONNX Runtime, ready to answer.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import GoldenMismatch, ModelInvalid, RuntimeUnavailable
from models.manifest import Manifest
from models.package import VerifiedPackage, verify_package
from models.preprocess import to_pixels

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDER_NAMES: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ORT_ERRORS_ONLY = 3
"""Severity of ONNX Runtime's log: what goes wrong reaches us as an exception, and its warnings are about its own optimiser."""


@dataclass(frozen=True)
class Model:
    """A package that passed verification, and the session that passed its golden images. Thread-safe."""

    manifest: Manifest
    path: Path
    provider: Provider
    threads: int
    session: ort.InferenceSession

    def run(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str] = ("probabilities",)) -> dict[str, NDArray[np.float32]]:
        """The graph's *outputs* for a batch, by name; only the part of the graph that they need is computed.

        *pixels_NHWC* is `uint8 [N,H,W,3]` as `models.preprocess.to_pixels` gives it, N >= 1.
        """
        values = self.session.run(list(outputs), {self.manifest.input.name: pixels_NHWC}, _only_what_is_asked())
        return dict(zip(outputs, values, strict=True))


def open_model(package: Path, *, threads: int = 1, provider: Provider = "cpu", warm_batches: Sequence[int] = (1,)) -> Model:
    """The package in folder *package*: verified, loaded, warm for each batch size of *warm_batches*, its golden images answered.

    *threads* are ONNX Runtime's intra-op threads. Raises `PackageError` with the reason for a package that may not be served,
    `RuntimeUnavailable` if *provider* cannot be had: nothing falls back to another one.
    """
    return open_verified(verify_package(package), threads=threads, provider=provider, warm_batches=warm_batches)


def open_verified(verified: VerifiedPackage, *, threads: int = 1, provider: Provider = "cpu", warm_batches: Sequence[int] = (1,)) -> Model:
    """As `open_model`, for a package whose files were already verified: the session is made from those very bytes."""
    session = open_session(verified.model, threads=threads, provider=provider, origin=str(verified.path))
    model = Model(manifest=verified.manifest, path=verified.path, provider=provider, threads=threads, session=session)
    warm_up(model, warm_batches)
    check_golden(model, verified)
    return model


def open_session(model: bytes, *, threads: int, provider: Provider, origin: str) -> ort.InferenceSession:
    """A session on *provider* and no other. *origin* names the model in messages."""
    name = PROVIDER_NAMES[provider]
    if name not in ort.get_available_providers():
        raise RuntimeUnavailable(
            f"provider {provider} was asked for, but this onnxruntime {ort.__version__} offers {', '.join(ort.get_available_providers())}. "
            "Install the GPU runtime (`make setup RUNTIME=gpu`) or ask for provider cpu; `loupe doctor` says more"
        )
    try:
        session = ort.InferenceSession(model, _session_options(threads), providers=[name])
    except Exception as error:
        raise ModelInvalid(f"{origin}: ONNX Runtime cannot load model.onnx: {error}") from error
    # ONNX Runtime only logs when a provider fails to load, and goes on with the CPU.
    if session.get_providers()[0] != name:
        raise RuntimeUnavailable(
            f"{origin}: provider {provider} was asked for, but ONNX Runtime fell back to {', '.join(session.get_providers())}. "
            "Its libraries could not be loaded: `loupe doctor` says which"
        )
    return session


def warm_up(model: Model, batches: Sequence[int]) -> None:
    """Run each batch size once, so that no request pays for allocation or kernel choice."""
    height, width = model.manifest.preprocess.crop
    for batch in batches:
        model.run(np.zeros((batch, height, width, 3), dtype=np.uint8))


def check_golden(model: Model, verified: VerifiedPackage) -> None:
    """Raise `GoldenMismatch` unless the session answers every golden image as recorded, starting from the encoded bytes."""
    for image in verified.golden:
        pixels_HWC = to_pixels(image.encoded, model.manifest.preprocess)
        found_K = model.run(pixels_HWC[np.newaxis])["probabilities"][0]
        expected_K = np.asarray(image.probabilities, dtype=np.float32)
        difference = float(np.max(np.abs(found_K - expected_K)))
        # Written so that NaN fails.
        if not difference <= verified.golden_tolerance:
            raise GoldenMismatch(
                f"{verified.path}: golden image {image.file} differs by {difference:.2e} from its recorded probabilities "
                f"(tolerance {verified.golden_tolerance:.0e}, provider {model.provider}). The model was damaged after its hashes were made, "
                "or this machine decodes or computes differently; export the package again on a machine of this kind"
            )


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ORT_ERRORS_ONLY
    # Idle threads that spin take the cores from decoding, which is as much work as a small network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _only_what_is_asked() -> Any:  # Any: onnxruntime ships no types
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    options.log_severity_level = ORT_ERRORS_ONLY
    return options
