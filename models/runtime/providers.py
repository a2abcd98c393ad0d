"""Execution providers of ONNX Runtime: options of each, and a check of what a session uses.

ONNX Runtime only logs when a provider fails to load, and continues with the CPU. It does the same
when a GPU fails in the middle of a run. Here both are errors.

Letters used in shapes: N images, H and W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.errors import RuntimeUnavailable

if TYPE_CHECKING:  # imported where it is used: the doctor needs this module without ONNX Runtime
    import onnxruntime as ort

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDER_NAMES: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ORT_ERRORS_ONLY = 3
"""Severity of ONNX Runtime's log. Failures are exceptions; its warnings concern its optimiser."""
ORT_FATAL_ONLY = 4
ANY_SIZE = 0
"""Stands for every batch size, where one session runs them all."""
Shape = tuple[int, int, int, int]
"""[N,H,W,C] of one input batch."""


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What a session on a GPU may take, and where it keeps what it built."""

    device: int = 0
    """Index among the GPUs that this process sees."""
    memory_limit_bytes: int | None = None
    """Limit of the arena of one session; cuDNN and CUDA take memory besides. None: no limit."""
    engine_cache: Path = Path("artifacts/tensorrt")
    """Folder of TensorRT's engines. They are code: nobody else may write to that folder."""


def require_offered(provider: Provider) -> None:
    """Raises `RuntimeUnavailable` if the installed ONNX Runtime was not built with *provider*."""
    import onnxruntime as ort

    offered = ort.get_available_providers()
    if PROVIDER_NAMES[provider] not in offered:
        raise RuntimeUnavailable(
            f"provider {provider} was asked for, but this onnxruntime {ort.__version__} offers"
            f" {', '.join(offered)}. Install the GPU runtime (`make setup RUNTIME=gpu`) or ask for"
            " provider cpu; `loupe doctor` says more"
        )


def require_provider(session: ort.InferenceSession, provider: Provider, *, origin: str) -> None:
    """Raise `RuntimeUnavailable` unless *session* computes on *provider*.

    The provider must come first, and a GPU must have a part of the graph.
    """
    name, found = PROVIDER_NAMES[provider], session.get_providers()
    if found[:1] != [name]:
        raise RuntimeUnavailable(
            f"{origin}: provider {provider} was asked for, but ONNX Runtime fell back to"
            f" {', '.join(found)}. Its libraries could not be loaded: `loupe doctor` says which"
        )
    # Older releases cannot say who computes what.
    if provider != "cpu" and hasattr(session, "get_provider_graph_assignment_info"):
        owners = {part.ep_name for part in session.get_provider_graph_assignment_info()}
        if name not in owners:
            raise RuntimeUnavailable(
                f"{origin}: provider {provider} was asked for and loaded, but took no part of the"
                f" graph, which would run on {', '.join(sorted(owners))}. Its operators are not"
                " supported there: ask for provider cpu"
            )


def preload_libraries(provider: Provider) -> None:
    """Load CUDA's and TensorRT's libraries from their wheels, unknown to the system's loader."""
    if provider == "cpu":
        return
    import onnxruntime as ort

    ort.preload_dlls()
    if provider == "tensorrt":
        # The wheel's import loads libnvinfer; a system-wide TensorRT is found without it.
        with suppress(ImportError):
            importlib.import_module("tensorrt_libs")


def provider_list(
    provider: Provider,
    *,
    gpu: GpuOptions,
    model: bytes,
    input_name: str,
    shapes_NHWC: Sequence[Shape],
) -> list[tuple[str, dict[str, str]]]:
    """`providers` for a session of *model* on *provider*, for input batches of *shapes_NHWC*."""
    match provider:
        case "cpu":
            return [(PROVIDER_NAMES["cpu"], {})]
        case "cuda":
            return [(PROVIDER_NAMES["cuda"], cuda_options(gpu))]
        case "tensorrt":
            # What TensorRT does not take goes to CUDA, not to the CPU.
            tensorrt = tensorrt_options(
                gpu, model=model, input_name=input_name, shapes_NHWC=shapes_NHWC
            )
            return [
                (PROVIDER_NAMES["tensorrt"], tensorrt),
                (PROVIDER_NAMES["cuda"], cuda_options(gpu)),
            ]


def cuda_options(gpu: GpuOptions) -> dict[str, str]:
    """Options of the CUDA provider. Source: ONNX Runtime's page "CUDA Execution Provider"."""
    options = {
        "device_id": str(gpu.device),
        # The default, EXHAUSTIVE, tries every algorithm at each new batch size: seconds for the
        # request that brings it.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles the arena, which never shrinks.
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 has the mantissa of fp16: a package that says fp32 gives the answers of fp32. For
        # speed, export fp16.
        "use_tf32": "0",
    }
    if gpu.memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(gpu.memory_limit_bytes)
    return options


def batch_buckets(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and *largest*. They are few, as a GPU prepares kernels for each batch size."""
    return (*(2**power for power in range((largest - 1).bit_length())), largest)


def session_sizes(provider: Provider, buckets: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes that have a session of their own: on CUDA each of *buckets*.

    Since ONNX Runtime 1.20 a convolution keeps the plan for one shape only, and a session plans
    again at each change of batch size (microsoft/onnxruntime#23006). On an H200 that took 1.3 s for
    MobileNetV2.
    """
    return tuple(buckets) if provider == "cuda" else (ANY_SIZE,)


def quieten(provider: Provider) -> None:
    """Let ONNX Runtime log fatal errors only, once a session on a GPU is open.

    cuDNN logs an error for each plan that does not fit a convolution, and takes the next one: a
    hundred errors at a start of MobileNetV2. A real failure is an exception.
    """
    import onnxruntime as ort

    if provider != "cpu":
        ort.set_default_logger_severity(ORT_FATAL_ONLY)


def tensorrt_options(
    gpu: GpuOptions, *, model: bytes, input_name: str, shapes_NHWC: Sequence[Shape]
) -> dict[str, str]:
    """Options of TensorRT. Source: ONNX Runtime's page "TensorRT Execution Provider"."""
    options = {"device_id": str(gpu.device)}
    if shapes_NHWC:
        # One profile for all buckets, fastest at the largest; without it each new batch size would
        # build an engine again.
        low, high = min(shapes_NHWC), max(shapes_NHWC)
        for bound, shape in (("min", low), ("opt", high), ("max", high)):
            options[f"trt_profile_{bound}_shapes"] = f"{input_name}:{'x'.join(map(str, shape))}"
    folder = str(engine_folder(gpu.engine_cache, model=model, shapes_NHWC=shapes_NHWC))
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def engine_folder(cache: Path, *, model: bytes, shapes_NHWC: Sequence[Shape]) -> Path:
    """The private folder in *cache* for the engines of this *model* and these shapes, created.

    ONNX Runtime names an engine by the graph's structure and not by its weights. In a shared folder
    the next version of a model would use the engine of the last one. Source: onnxruntime issues
    6455 and 32254.
    """
    key = hashlib.sha256(
        hashlib.sha256(model).digest() + repr(sorted(shapes_NHWC)).encode()
    ).hexdigest()[:32]
    folder = cache.resolve() / key
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeUnavailable(
            f"TensorRT cannot keep its engines in {folder}: {error.strerror}. Make {cache} writable"
        ) from error
    return folder


def session_options(threads: int, *, provider: Provider) -> Any:  # Any: onnxruntime ships no types
    """Options of every session: *threads* intra-op threads, and a log of errors alone."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ORT_ERRORS_ONLY
    # Idle threads that spin take the cores from decoding, which is as much work as a small network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "cpu":
        # A plan for each batch size costs memory and saves no time: with batches of up to 16,
        # MobileNetV3-small holds 84 MiB without plans and 108 MiB with them, at the same speed.
        options.enable_mem_pattern = False
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options
