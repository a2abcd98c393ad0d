"""What this machine gives a process: CPU budget and CPU class."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")

# The first class whose flags are all present wins. int8 kernels differ between these classes and
# nothing finer: without VNNI an x86 kernel saturates at 16 bits. Source: ONNX Runtime's
# quantisation guide, "U8S8 on x86".
_X86_CLASSES = (
    ("x86-64-amx", {"amx_int8"}),
    ("x86-64-avx512-vnni", {"avx512_vnni"}),
    ("x86-64-avx-vnni", {"avx_vnni"}),
    ("x86-64-avx512", {"avx512f"}),
    ("x86-64-avx2", {"avx2"}),
)

# Parameters of mallopt, as <malloc.h> numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def cpus_of_process() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may run on, by its affinity mask; empty where the
    system has no such thing.
    """
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def cpu_budget(*, cgroup: Path = CGROUP) -> float:
    """CPUs that this process may keep busy: the affinity mask, cut down by the cgroup's quota (v2,
    then v1). At least a part of one.
    """
    affinity = float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup_quota(cgroup)
    return affinity if quota is None else min(affinity, quota)


def threads_per_worker(workers: int, *, budget: float | None = None) -> int:
    """Intra-op threads for each of *workers* processes, so that together they do not exceed the CPU
    budget. At least 1.
    """
    return max(1, math.floor((cpu_budget() if budget is None else budget) / workers))


@cache
def cpu_class() -> str:
    """The instruction-set class that decides what int8 kernels compute, such as
    `x86-64-avx512-vnni` or `arm64`.
    """
    architecture = platform.machine().lower()
    if architecture in ("arm64", "aarch64"):
        return "arm64"
    if architecture not in ("x86_64", "amd64"):
        return architecture
    flags = _cpu_flags()
    return next((name for name, needed in _X86_CLASSES if needed <= flags), "x86-64")


def give_back_memory() -> None:
    """Return to the kernel what the C library's allocator holds without use, where it can be told
    to: with glibc.
    """
    malloc_trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    )
    if malloc_trim is not None:
        malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library's allocator keep what is freed, where it can be told to: with glibc.

    `give_back_memory` still gives it back.

    By default a large tensor is mapped anew each time and its pages come one by one from the
    kernel, which zeroes them: in the training of MobileNetV2 that took up to half of the time of
    two cores. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cpu_flags() -> frozenset[str]:
    if not CPU_INFO.is_file():
        return frozenset()
    lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    return frozenset(
        next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    )


def _cgroup_quota(cgroup: Path) -> float | None:
    """CPUs that the cgroup's quota allows; None without one."""
    version_2 = cgroup / "cpu.max"
    if version_2.is_file():
        quota, period = version_2.read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    version_1 = cgroup / "cpu" / "cpu.cfs_quota_us"
    if version_1.is_file():
        micros = int(version_1.read_text(encoding="ascii"))
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if micros < 0 else micros / period_us
    return None
