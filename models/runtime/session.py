"""A verified package in a session of ONNX Runtime, ready to answer.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.errors import (
    GoldenMismatch,
    ImageError,
    ModelInvalid,
    PackageTampered,
    RuntimeUnavailable,
)
from models.machine import cpu_class, give_back_memory
from models.package.manifest import MODEL_FILE, SIBLING_FILE, Manifest, Precision
from models.package.verify import GoldenImage, VerifiedPackage, verify_package
from models.pixels.preprocess import to_pixels
from models.runtime.answer_graph import answering_part
from models.runtime.providers import (
    ANY_SIZE,
    ORT_ERRORS_ONLY,
    PROVIDER_NAMES,
    GpuOptions,
    Provider,
    Shape,
    batch_buckets,
    preload_libraries,
    provider_list,
    quieten,
    require_offered,
    require_provider,
    session_options,
    session_sizes,
)
from models.runtime.whole_graph import WholeGraph

__all__ = [
    "PROVIDER_NAMES",
    "GpuOptions",
    "Model",
    "Provider",
    "batch_buckets",
    "check_golden",
    "open_model",
    "open_session",
    "open_verified",
    "warm_up",
]

INPUT_NAME = "image"
NO_GPU_OPTIONS = GpuOptions()
MODEL_FAULTS = {"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented"}
"""Errors of ONNX Runtime that a model earns on any provider; the rest may be the GPU's."""

log = logging.getLogger("loupe")


@dataclass(frozen=True)
class Model:
    """A package that passed verification, and the session that passed its golden images.

    Thread-safe.
    """

    manifest: Manifest
    path: Path
    provider: Provider
    threads: int
    sessions: Mapping[int, ort.InferenceSession]
    """By the batch size that each is for; `ANY_SIZE` alone: one for all."""
    buckets: tuple[int, ...] = ()
    """Batch sizes that the model is run with, ascending: others are padded to the next one. Empty: any size as it comes."""
    fallback: str | None = None
    """Why the fp32 sibling answers instead of the package's int8 model; None: the model itself answers."""
    at_hand: frozenset[str] | None = None
    """Outputs that `sessions` have; None: all."""
    whole: WholeGraph | None = field(default=None, repr=False)
    """Where the other outputs are to be had."""

    @property
    def precision(self) -> Precision:
        """Precision of the session, which is not the manifest's when the fp32 sibling answers."""
        return self.manifest.precision if self.fallback is None else "fp32"

    def run(
        self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str] = ("probabilities",)
    ) -> dict[str, NDArray[np.float32]]:
        """The graph's *outputs* for a batch, by name.

        What `probabilities` does not need is computed only when asked for.

        *pixels_NHWC* is `uint8 [N,H,W,3]` as `models.pixels.preprocess.to_pixels` gives it, N >= 1.
        """
        if not self.buckets:
            return self._run(pixels_NHWC, outputs)
        largest = self.buckets[-1]
        parts = [
            self._run_padded(pixels_NHWC[start : start + largest], outputs)
            for start in range(0, len(pixels_NHWC), largest)
        ]
        if len(parts) == 1:
            return parts[0]
        return {
            name: (
                np.concatenate([part[name] for part in parts])
                if self._is_batched(name)
                else parts[0][name]
            )
            for name in outputs
        }

    def _run_padded(
        self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        count = len(pixels_NHWC)
        bucket = next(size for size in self.buckets if size >= count)
        if bucket == count:
            return self._run(pixels_NHWC, outputs)
        padded_NHWC = np.zeros((bucket, *pixels_NHWC.shape[1:]), dtype=np.uint8)
        padded_NHWC[:count] = pixels_NHWC
        found = self._run(padded_NHWC, outputs)
        return {
            name: value[:count] if self._is_batched(name) else value
            for name, value in found.items()
        }

    def _run(
        self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        size = ANY_SIZE if ANY_SIZE in self.sessions else len(pixels_NHWC)
        all_at_hand = self.at_hand is None or self.at_hand.issuperset(outputs)
        session = (self.sessions if all_at_hand or self.whole is None else self.whole.sessions())[
            size
        ]
        values = session.run(list(outputs), {self.manifest.input.name: pixels_NHWC}, _quiet_run())
        return dict(zip(outputs, values, strict=True))

    def _is_batched(self, output: str) -> bool:
        """Whether *output* has a row for each image; weights that go with a heatmap have not."""
        return any(
            spec.name == output and spec.shape[:1] == ("N",) for spec in self.manifest.outputs
        )


def open_model(
    package: Path,
    *,
    threads: int = 1,
    provider: Provider = "cpu",
    warm_batches: Sequence[int] = (1,),
    buckets: Sequence[int] | None = None,
    gpu: GpuOptions = NO_GPU_OPTIONS,
    allow_fallback: bool = True,
) -> Model:
    """The package in folder *package*: verified, loaded, warm for each batch size of
    *warm_batches*, its golden images answered.

    *threads* are ONNX Runtime's intra-op threads. On a GPU batches are padded to one of *buckets*,
    by default `batch_buckets` up to the largest of *warm_batches*; on CUDA each of them has a
    session of its own. An int8 package on a CPU class that it was not validated on, or where its
    golden images fail, is answered by its fp32 sibling, with a warning and `Model.fallback` set,
    unless *allow_fallback* is False: judge a package with False, serve it with True.

    Raises `PackageError` with the reason for a package that may not be served, `RuntimeUnavailable`
    if *provider* cannot be had: nothing falls back to another one.
    """
    verified = verify_package(package)
    return open_verified(
        verified,
        threads=threads,
        provider=provider,
        warm_batches=warm_batches,
        buckets=buckets,
        gpu=gpu,
        allow_fallback=allow_fallback,
    )


def open_verified(
    verified: VerifiedPackage,
    *,
    threads: int = 1,
    provider: Provider = "cpu",
    warm_batches: Sequence[int] = (1,),
    buckets: Sequence[int] | None = None,
    gpu: GpuOptions = NO_GPU_OPTIONS,
    allow_fallback: bool = True,
) -> Model:
    """As `open_model`, for a package whose files were already verified: the session is made from
    those very bytes.
    """
    # What lives as long as the model must not hold `verified`, whose bytes are as large as the
    # weights.
    path, manifest = verified.path, verified.manifest
    padded = () if provider == "cpu" else tuple(buckets or batch_buckets(max(warm_batches)))

    def opened(model: bytes, *, fallback: str | None = None) -> Model:
        shapes_NHWC = [(size, *manifest.preprocess.crop, 3) for size in padded or warm_batches]

        def sessions_of(graph: bytes) -> dict[int, ort.InferenceSession]:
            open_one = partial(
                open_session, graph, threads=threads, provider=provider, origin=str(path), gpu=gpu
            )
            of_size = {shape[0]: [shape] for shape in shapes_NHWC}
            return {
                size: open_one(shapes_NHWC=of_size.get(size, shapes_NHWC))
                for size in session_sizes(provider, padded)
            }

        # Neither `ready` nor `verified` may be held here: the one would be a cycle, which keeps a
        # closed model's memory until the garbage collector comes by, the other the file's bytes
        # beside the session.
        def whole_sessions() -> dict[int, ort.InferenceSession]:
            again = verify_package(path)
            if again.manifest != manifest:
                raise PackageTampered(
                    f"{path} was replaced by another package while it was in use; open it again"
                )
            sessions = sessions_of(again.model if fallback is None else again.sibling or b"")
            check_golden(
                Model(manifest, path, provider, threads, sessions, padded, fallback), again
            )
            return sessions

        part, names = answering_part(model)
        whole = None if part is model else WholeGraph(whole_sessions)
        ready = Model(
            manifest, path, provider, threads, sessions_of(part), padded, fallback, names, whole
        )
        warm_up(ready, padded or warm_batches)
        check_golden(ready, verified)
        # Verification and pruning held several copies of the weights for a moment.
        give_back_memory()
        return ready

    sibling = verified.sibling if allow_fallback else None
    doubt = _int8_doubt(verified.manifest, provider)
    if doubt is None or sibling is None:
        try:
            model = opened(verified.model)
        except GoldenMismatch as error:
            if sibling is None:
                raise _explained(error, doubt) from error
            doubt = str(error)
        else:
            if doubt is not None:
                log.warning(
                    "%s: %s; its golden images pass here, so int8 is used", verified.path, doubt
                )
            return model
    log.warning("%s: %s answers instead of %s: %s", verified.path, SIBLING_FILE, MODEL_FILE, doubt)
    return opened(sibling, fallback=doubt)


def open_session(
    model: bytes,
    *,
    threads: int,
    provider: Provider,
    origin: str,
    gpu: GpuOptions = NO_GPU_OPTIONS,
    shapes_NHWC: Sequence[Shape] = (),
) -> ort.InferenceSession:
    """A session on *provider* and no other.

    *origin* names the model in messages, *shapes_NHWC* are the batches that TensorRT prepares for.

    Raises `RuntimeUnavailable` if *provider* cannot be had, `ModelInvalid` if ONNX Runtime cannot
    load *model*.
    """
    require_offered(provider)
    preload_libraries(provider)
    providers = provider_list(
        provider, gpu=gpu, model=model, input_name=INPUT_NAME, shapes_NHWC=shapes_NHWC
    )
    try:
        # Without enable_fallback=0 a GPU that fails, now or in the middle of a run, is replaced by
        # the CPU with a line on stdout.
        session = ort.InferenceSession(
            model,
            session_options(threads, provider=provider),
            providers=providers,
            enable_fallback=0,
        )
    except Exception as error:
        if provider == "cpu" or type(error).__name__ in MODEL_FAULTS:
            raise ModelInvalid(f"{origin}: ONNX Runtime cannot load model.onnx: {error}") from error
        raise RuntimeUnavailable(
            f"{origin}: provider {provider} cannot be used: {error}. `loupe doctor` says what is"
            " missing"
        ) from error
    require_provider(session, provider, origin=origin)
    quieten(provider)
    # Kept by onnxruntime for a change of providers, which we never ask for: as large as the
    # weights.
    session._model_bytes = b""  # noqa: SLF001
    return session


def warm_up(model: Model, batches: Sequence[int]) -> None:
    """Run each batch size once, so that no request pays for allocation or kernel choice."""
    height, width = model.manifest.preprocess.crop
    for batch in batches:
        model.run(np.zeros((batch, height, width, 3), dtype=np.uint8))


def check_golden(model: Model, verified: VerifiedPackage) -> None:
    """Raise `GoldenMismatch` unless the session answers every golden image as recorded, starting
    from the encoded bytes.

    With buckets, at every one of them: a GPU may compute each with another kernel.
    """
    for image in verified.golden:
        try:
            pixels_HWC = to_pixels(image.encoded, model.manifest.preprocess)
        except ImageError as error:
            raise GoldenMismatch(
                f"{verified.path}: golden image {image.file} cannot be read as the manifest's spec"
                f" says: {error}"
            ) from error
        expected_K = np.asarray(_recorded(image, model), dtype=np.float32)
        for batch in model.buckets or (1,):
            found_NK = model.run(np.repeat(pixels_HWC[np.newaxis], batch, axis=0))["probabilities"]
            difference = float(np.max(np.abs(found_NK - expected_K)))
            # Written so that NaN fails.
            if not difference <= verified.golden_tolerance:
                raise GoldenMismatch(
                    f"{verified.path}: golden image {image.file} differs by {difference:.2e} from"
                    f" its recorded probabilities (tolerance {verified.golden_tolerance:.0e},"
                    f" provider {model.provider}). The model was damaged after its hashes were"
                    " made, or this machine decodes or computes differently; export the package"
                    " again on a machine of this kind"
                )


def _recorded(image: GoldenImage, model: Model) -> tuple[float, ...]:
    if model.fallback is None:
        return image.probabilities
    assert image.sibling_probabilities is not None, (
        "verify_package lets no sibling without answers through"
    )
    return image.sibling_probabilities


def _int8_doubt(manifest: Manifest, provider: Provider) -> str | None:
    """Why the int8 model may compute something else here than where it was validated; None if there
    is no reason to think so.

    int8 kernels differ between CPU classes, and without VNNI they saturate: the same file may lose
    many points of accuracy.
    """
    if manifest.precision != "int8":
        return None
    if provider != "cpu":
        return f"int8 was validated on CPU class {manifest.cpu_class}, not on provider {provider}"
    if manifest.cpu_class != cpu_class():
        return (
            f"int8 was validated on CPU class {manifest.cpu_class}, and this machine is"
            f" {cpu_class()}"
        )
    return None


def _explained(error: GoldenMismatch, doubt: str | None) -> GoldenMismatch:
    return (
        error
        if doubt is None
        else GoldenMismatch(f"{error}. {doubt}; the package has no {SIBLING_FILE} to use instead")
    )


def _quiet_run() -> Any:  # Any: onnxruntime ships no types
    options = ort.RunOptions()
    options.log_severity_level = ORT_ERRORS_ONLY
    return options
