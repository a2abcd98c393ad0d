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
    RuntimeUnavailable,
)
from models.machine import cpu_class, give_back_memory
from models.package.manifest import MODEL_FILE, SIBLING_FILE, Manifest, Precision
from models.package.verify import VerifiedPackage, verify_package
from models.pixels.preprocess import to_pixels
from models.runtime import providers
from models.runtime.answer_graph import ANSWER, split_graph
from models.runtime.class_maps import whole_name
from models.runtime.providers import ANY_SIZE, GpuOptions, Provider, Shape
from models.runtime.rest import Rest, open_rest

INPUT_NAME = "image"
GPU_DEFAULTS = GpuOptions()
MODEL_FAULTS = {"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented"}
"""Errors of ONNX Runtime that are the model's fault on any provider; others may be the GPU's."""

Arrays = dict[str, NDArray[np.float32]]
Sessions = Mapping[int, ort.InferenceSession]
"""By the batch size that each is for; `ANY_SIZE` alone: one for all."""

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
    sessions: Sessions
    buckets: tuple[int, ...] = ()
    """Batch sizes in ascending order; others are padded to the next one. Empty: no padding."""
    fallback: str | None = None
    """Why the fp32 sibling answers instead of the int8 model; None: the model itself answers."""
    answer_outputs: frozenset[str] = frozenset()
    """Outputs that `sessions` compute."""
    rest: Rest | None = field(default=None, repr=False)
    """What computes the other outputs from inner values of `sessions`; None: there are none."""

    @property
    def precision(self) -> Precision:
        """Precision of the session, which is not the manifest's when the fp32 sibling answers."""
        return self.manifest.precision if self.fallback is None else "fp32"

    def run(
        self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str] = ("probabilities",)
    ) -> Arrays:
        """The graph's *outputs* for a batch, by name.

        What `probabilities` does not need is computed only on request. `class_maps.map_of` names
        the part of `cam` for one class.

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

    def _run_padded(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Arrays:
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

    def _run(self, pixels_NHWC: NDArray[np.uint8], outputs: Sequence[str]) -> Arrays:
        session = self.sessions[ANY_SIZE if ANY_SIZE in self.sessions else len(pixels_NHWC)]
        given = {self.manifest.input.name: pixels_NHWC}
        if self.rest is None or self.answer_outputs.issuperset(outputs):
            values = session.run(list(outputs), given, _quiet_run())
            return dict(zip(outputs, values, strict=True))
        asked = {ANSWER, *self.rest.inner, *self.answer_outputs.intersection(outputs)}
        asked -= given.keys()
        found = dict(zip(asked, session.run(list(asked), given, _quiet_run()), strict=True))
        beyond = [name for name in outputs if name not in found]
        found |= self.rest.run(beyond, found | given)
        return {name: found[name] for name in outputs}

    def _is_batched(self, output: str) -> bool:
        """Whether *output* has a row for each image."""
        return any(
            spec.name == whole_name(output) and spec.shape[:1] == ("N",)
            for spec in self.manifest.outputs
        )


def open_model(
    package: Path | VerifiedPackage,
    *,
    threads: int = 1,
    provider: Provider = "cpu",
    warm_batches: Sequence[int] = (1,),
    buckets: Sequence[int] | None = None,
    gpu: GpuOptions = GPU_DEFAULTS,
    allow_fallback: bool = True,
) -> Model:
    """The package in folder *package*: verified, loaded, warm, its golden images answered.

    *threads* are ONNX Runtime's intra-op threads. Each batch size of *warm_batches* is run once. On
    a GPU batches are padded to one of *buckets*, by default `batch_buckets` up to the largest of
    *warm_batches*; on CUDA each of them has a session of its own.

    The fp32 sibling of an int8 package answers on a CPU class that int8 was not validated on, or
    where the golden images fail. Then there is a warning, and `Model.fallback` is set. Judge a
    package with *allow_fallback* false, serve it with true.

    Raises `PackageError` for a package that may not be served, and `RuntimeUnavailable` if
    *provider* is not available: there is no fallback to another one.
    """
    verified = package if isinstance(package, VerifiedPackage) else verify_package(package)
    # The bytes of `verified` are as large as the weights. Nothing that lives as long as the model
    # may hold them, and so these two are taken out.
    path, manifest = verified.path, verified.manifest
    default = providers.batch_buckets(max(warm_batches))
    padded = () if provider == "cpu" else tuple(buckets or default)

    def opened(model: bytes, *, fallback: str | None = None) -> Model:
        shapes_NHWC = [(size, *manifest.preprocess.crop, 3) for size in padded or warm_batches]

        def sessions_of(graph: bytes) -> Sessions:
            open_one = partial(
                open_session, graph, threads=threads, provider=provider, origin=str(path), gpu=gpu
            )
            of_size = {shape[0]: [shape] for shape in shapes_NHWC}
            return {
                size: open_one(shapes_NHWC=of_size.get(size, shapes_NHWC))
                for size in providers.session_sizes(provider, padded)
            }

        split = split_graph(model)
        sessions = sessions_of(split.answer)
        rest = open_rest(split, next(iter(sessions.values())), threads=threads)
        ready = Model(
            manifest, path, provider, threads, sessions, padded, fallback, split.outputs, rest
        )
        # As large as the weights. Without it, the memory given back below is more.
        del split
        warm_up(ready, padded or warm_batches)
        check_golden(ready, verified)
        # Verification and cutting the graph held several copies of the weights for a moment.
        give_back_memory()
        return ready

    sibling = verified.sibling if allow_fallback else None
    risk = _int8_risk(manifest, provider)
    if risk is None or sibling is None:
        try:
            model = opened(verified.model)
        except GoldenMismatch as error:
            if sibling is None:
                missing = f". {risk}; the package has no {SIBLING_FILE} to use instead"
                raise GoldenMismatch(f"{error}{missing if risk else ''}") from error
            risk = str(error)
        else:
            if risk is not None:
                log.warning("%s: %s; its golden images pass here, so int8 is used", path, risk)
            return model
    log.warning("%s: %s answers instead of %s: %s", path, SIBLING_FILE, MODEL_FILE, risk)
    return opened(sibling, fallback=risk)


def open_session(
    model: bytes,
    *,
    threads: int,
    provider: Provider,
    origin: str,
    gpu: GpuOptions = GPU_DEFAULTS,
    shapes_NHWC: Sequence[Shape] = (),
) -> ort.InferenceSession:
    """A session on *provider* and no other.

    *origin* names the model in messages, *shapes_NHWC* are the batches that TensorRT prepares for.

    Raises `RuntimeUnavailable` if *provider* is not available, `ModelInvalid` if ONNX Runtime
    cannot load *model*.
    """
    providers.require_offered(provider)
    providers.preload_libraries(provider)
    wanted = providers.provider_list(
        provider, gpu=gpu, model=model, input_name=INPUT_NAME, shapes_NHWC=shapes_NHWC
    )
    try:
        # With enable_fallback a failing GPU would be replaced by the CPU, now or in the middle of a
        # run.
        session = ort.InferenceSession(
            model,
            providers.session_options(threads, provider=provider),
            providers=wanted,
            enable_fallback=0,
        )
    except Exception as error:
        if provider == "cpu" or type(error).__name__ in MODEL_FAULTS:
            raise ModelInvalid(f"{origin}: ONNX Runtime cannot load model.onnx: {error}") from error
        raise RuntimeUnavailable(
            f"{origin}: provider {provider} cannot be used: {error}. `loupe doctor` says what is"
            " missing"
        ) from error
    providers.require_provider(session, provider, origin=origin)
    providers.quieten(provider)
    # As large as the weights. onnxruntime keeps it for a change of providers, which never happens.
    session._model_bytes = b""  # noqa: SLF001
    return session


def warm_up(model: Model, batches: Sequence[int]) -> None:
    """Run each batch size once, so that no request pays for allocation or kernel choice."""
    height, width = model.manifest.preprocess.crop
    for batch in batches:
        model.run(np.zeros((batch, height, width, 3), dtype=np.uint8))


def check_golden(model: Model, verified: VerifiedPackage) -> None:
    """Raise `GoldenMismatch` unless every golden image, from its file, gets its recorded answer.

    Every bucket is checked: a GPU may compute each with another kernel.
    """
    for image in verified.golden:
        try:
            pixels_HWC = to_pixels(image.encoded, model.manifest.preprocess)
        except ImageError as error:
            raise GoldenMismatch(
                f"{verified.path}: golden image {image.file} cannot be read as the manifest's spec"
                f" says: {error}"
            ) from error
        # The second answer is the sibling's, which every golden image of such a package has.
        answer = image.answers()[0 if model.fallback is None else 1]
        expected_K = np.asarray(answer, dtype=np.float32)
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


def _int8_risk(manifest: Manifest, provider: Provider) -> str | None:
    """Why the int8 model may compute something else here than where it was validated, or None.

    int8 kernels differ between CPU classes, and without VNNI they saturate: the same file may lose
    many points of accuracy.
    """
    on_cpu = provider == "cpu"
    if manifest.precision != "int8" or (on_cpu and manifest.cpu_class == cpu_class()):
        return None
    here = f"and this machine is {cpu_class()}" if on_cpu else f"not on provider {provider}"
    return f"int8 was validated on CPU class {manifest.cpu_class}, {here}"


def _quiet_run() -> Any:  # Any: onnxruntime ships no types
    options = ort.RunOptions()
    options.log_severity_level = providers.ORT_ERRORS_ONLY
    return options
