"""What this machine gives a process: CPUs, CPU class, and memory that is kept or given back."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
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
    """Numbers of the CPUs in this process's affinity mask; empty if the system has none."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def cpu_budget(*, cgroup: Path = CGROUP) -> float:
    """CPUs that this process may keep busy, by affinity mask and cgroup quota (v2, then v1)."""
    return min(float(len(cpus_of_process()) or os.cpu_count() or 1), _cgroup_quota(cgroup))


def threads_per_worker(workers: int, *, budget: float | None = None) -> int:
    """Intra-op threads for each of *workers* processes: the CPU budget divided, at least 1."""
    return max(1, math.floor((cpu_budget() if budget is None else budget) / workers))


@cache
def cpu_class() -> str:
    """The class of CPU that decides what int8 kernels compute, such as `x86-64-avx512-vnni`."""
    architecture = platform.machine().lower()
    if architecture in ("arm64", "aarch64"):
        return "arm64"
    if architecture not in ("x86_64", "amd64"):
        return architecture
    text = CPU_INFO.read_text(encoding="ascii", errors="replace") if CPU_INFO.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return next((name for name, needed in _X86_CLASSES if needed <= {*flags}), "x86-64")


def give_back_memory() -> None:
    """Return the unused memory of glibc's allocator to the kernel; nothing elsewhere."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep freed memory until `give_back_memory`; nothing elsewhere.

    By default each large tensor gets new pages, which the kernel zeroes one by one. In the training
    of MobileNetV2 that took up to half of the time of two cores. Source: mallopt(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cgroup_quota(cgroup: Path) -> float:
    """CPUs that the cgroup's quota allows; infinite without one."""
    version_2 = cgroup / "cpu.max"
    if version_2.is_file():
        quota, period = version_2.read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    version_1 = cgroup / "cpu" / "cpu.cfs_quota_us"
    if version_1.is_file():
        micros = int(version_1.read_text(encoding="ascii"))
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return math.inf if micros < 0 else micros / period_us
    return math.inf


def out_of_memory_kills(*, cgroup: Path = CGROUP, process: Path = OWN_CGROUPS) -> int:
    """How many processes of this cgroup the kernel has killed for want of memory; 0 if unknown.

    *process* names the cgroups of this process. Source: Linux, cgroup-v2.rst (`memory.events`) and
    cgroup-v1/memory.rst (`memory.oom_control`).
    """
    for file in _memory_counters(cgroup, process):
        try:
            found = OOM_KILL.search(file.read_text(encoding="ascii"))
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _memory_counters(cgroup: Path, process: Path) -> list[Path]:
    """Where the kernel may count. A container sees its own cgroup as the root."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        inside = path.lstrip("/")
        if not controllers:
            roots, name = (cgroup / inside, cgroup / "unified" / inside, cgroup), "memory.events"
        elif "memory" in controllers.split(","):
            roots, name = (cgroup / "memory" / inside, cgroup / "memory"), "memory.oom_control"  # type: ignore[assignment]
        else:
            continue
        found += [root / name for root in roots]
    return found


def doing(pid: int) -> str:
    """What the kernel says that process *pid* does, for the log; empty if it does not say."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state = stat.rpartition(")")[2].split()[0]
        known = {
            "T": "it is stopped, as by SIGSTOP",
            "D": "it waits for a disk or a device",
            "R": "it computes",
            "S": "it waits",
        }
        return f" ({known[state]})" if state in known else ""
    return ""
