"""Checks of what the machine gives: GPUs, CPU class, cores, memory and disk."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from models.doctor.check_result import CheckResult
from models.doctor.software import Runtime
from models.machine import CGROUP, threads_per_worker
from models.runtime.providers import PROVIDER_NAMES, Provider

MIB = 2**20
WORKER_MIB = 384
"""Least memory of a worker: with MobileNetV2 and batches of 16 it held 335 MiB (x86-64)."""
DISK_WARNING_MIB, DISK_ERROR_MIB = 1024, 100
"""Below the first a few packages fit, below the second not even the next one."""
NVIDIA_SMI_TIMEOUT_S = 20


def check_gpu(
    gpus: Sequence[str], *, runtime: Runtime | None, missing: Sequence[str], wanted: Provider
) -> CheckResult:
    """Compare the GPUs of the driver with ONNX Runtime's providers and the settings (*wanted*).

    *missing* are CUDA libraries that do not load; *runtime* is None if ONNX Runtime does not
    import.
    """
    seen, asked = "; ".join(gpus) if gpus else "no GPU answers", f"LOUPE_PROVIDER is {wanted}"
    if wanted != "cpu" and not gpus:
        return CheckResult(
            "error",
            "gpu",
            f"{asked}, but {seen}",
            "LOUPE_PROVIDER=cpu, or give this process a GPU: `nvidia-smi -L` must list one",
        )
    if runtime is None or not gpus:
        return CheckResult("ok", "gpu", f"{seen}; {asked}")
    if wanted != "cpu" and PROVIDER_NAMES[wanted] not in runtime.providers:
        return CheckResult(
            "error",
            "gpu",
            f"{asked}, but ONNX Runtime offers {', '.join(runtime.providers)}",
            "make setup RUNTIME=gpu",
        )
    if PROVIDER_NAMES["cuda"] not in runtime.providers:
        return CheckResult(
            "warning",
            "gpu",
            f"{seen}: idle, because this ONNX Runtime is a CPU build",
            "make setup RUNTIME=gpu",
        )
    if missing:
        fix = "python -m pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
        why = f"the CUDA provider cannot load {', '.join(missing)}"
        return CheckResult(
            "warning" if wanted == "cpu" else "error", "gpu", f"{seen}: idle, because {why}", fix
        )
    return CheckResult("ok", "gpu", f"{seen}; {asked}")


def check_cpu_class(found: str, *, machine: str) -> CheckResult:
    """The CPU class *found* on a *machine* (`x86_64`), and what int8 means on it."""
    if machine.lower() in ("x86_64", "amd64") and "vnni" not in found and "amx" not in found:
        return CheckResult(
            "ok",
            "cpu class",
            f"{found}, without VNNI: int8 gains little here and saturates at 16 bits; prefer fp32"
            " packages",
        )
    return CheckResult(
        "ok", "cpu class", f"{found}: int8 packages that were validated on this class run as int8"
    )


def check_threads(*, workers: int, threads: int, budget: float) -> CheckResult:
    """Workers times ONNX Runtime's threads against the CPU *budget* of affinity mask and cgroup."""
    each = threads or threads_per_worker(workers, budget=budget)
    asked = (
        f"LOUPE_WORKERS {workers} x {each} threads{'' if threads else ' (LOUPE_THREADS 0)'} on a"
        f" budget of {budget:g} CPUs"
    )
    if workers > max(1.0, budget):
        fix = f"LOUPE_WORKERS={max(1, int(budget))} LOUPE_THREADS=0"
        return CheckResult(
            "warning", "threads", f"{asked}: more workers than CPUs, which take turns", fix
        )
    if threads and workers * threads > max(1.0, budget):
        return CheckResult(
            "warning",
            "threads",
            f"{asked}: more threads than CPUs, which take turns or are throttled",
            "LOUPE_THREADS=0",
        )
    return CheckResult("ok", "threads", asked)


def check_memory(*, limit_bytes: int | None, workers: int) -> CheckResult:
    """Compare the cgroup's memory limit with the least that the workers need."""
    if limit_bytes is None:
        return CheckResult("ok", "memory", "the cgroup sets no limit")
    limit, needed = limit_bytes // MIB, workers * WORKER_MIB
    if limit < needed:
        fix = (
            f"raise the memory limit of the container to {needed} MiB, or"
            f" LOUPE_WORKERS={max(1, limit // WORKER_MIB)}"
        )
        return CheckResult(
            "warning",
            "memory",
            f"the cgroup allows {limit} MiB; {workers} workers need about {needed} MiB or more",
            fix,
        )
    return CheckResult("ok", "memory", f"the cgroup allows {limit} MiB for {workers} workers")


def check_disk(what: str, path: Path, free: int) -> CheckResult:
    """Whether *free* bytes in *path* are enough for *what*."""
    message = f"{free // MIB} MiB free for {what} in {path}"
    fix = "loupe models gc NAME" if what == "store" else f"free some space in {path}"
    if free < DISK_ERROR_MIB * MIB:
        return CheckResult("error", "disk", message, fix)
    if free < DISK_WARNING_MIB * MIB:
        return CheckResult("warning", "disk", message, fix)
    return CheckResult("ok", "disk", message)


def list_gpus() -> list[str]:
    """One line for each GPU that the driver reports; none without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [command, "-L"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")
    ]


def missing_cuda_libraries(
    cuda_version: str, *, load: Callable[[str], object] = ctypes.CDLL
) -> list[str]:
    """Libraries that a CUDA provider built for *cuda_version* (`13.0`) needs and *load* misses.

    NVIDIA's wheels are searched too. An empty version is of a CPU build, which needs none.
    """
    if sys.platform != "linux" or not cuda_version:
        return []
    if load is ctypes.CDLL:
        import onnxruntime as ort

        ort.preload_dlls()
    missing = []
    for name in cuda_libraries(int(cuda_version.partition(".")[0])):
        try:
            load(name)
        except OSError:
            missing.append(name)
    return missing


def cuda_libraries(major: int) -> tuple[str, ...]:
    """What the CUDA provider links to. Source: `onnxruntime.preload_dlls` of ONNX Runtime 1.31."""
    return (
        *(f"lib{name}.so.{major}" for name in ("cublasLt", "cublas", "nvrtc", "cudart")),
        "libcurand.so.10",
        f"libcufft.so.{12 if major >= 13 else 11}",
        "libcudnn.so.9",
    )


def memory_limit_bytes(*, cgroup: Path = CGROUP) -> int | None:
    """Memory limit of this process's cgroup (v2, then v1); None without one."""
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if path.is_file():
            text = path.read_text(encoding="ascii").strip()
            # v1 writes "no limit" as the largest page-aligned number.
            return int(text) if text != "max" and int(text) < 2**60 else None
    return None


def free_bytes(path: Path) -> int:
    """Free bytes for this user at *path*, or at its nearest parent that exists."""
    place = path.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return shutil.disk_usage(existing).free
