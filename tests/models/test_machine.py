"""What a process may use of its machine: never more than the affinity mask or the container's
quota, whichever generation of cgroup says so.
"""

import os
import platform
import subprocess
import sys

import psutil
import pytest

from models import machine
from models.machine import (
    cpu_budget,
    cpu_class,
    doing,
    out_of_memory_kills,
    threads_per_worker,
)


def version_2(root, text):
    (root / "cpu.max").write_text(text)
    return root


def version_1(root, quota, period):
    (root / "cpu").mkdir()
    (root / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (root / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
    return root


@pytest.fixture
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 16.0),
        ("200000 100000\n", 2.0),
        ("50000 100000\n", 0.5),
        ("150000 100000\n", 1.5),
        ("9900000 100000\n", 16.0),
    ],
)
def test_the_quota_of_cgroup_v2_cuts_the_affinity_mask(tmp_path, sixteen_cores, text, expected):
    assert cpu_budget(cgroup=version_2(tmp_path, text)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(-1, 16.0), (250000, 2.5)])
def test_the_quota_of_cgroup_v1_likewise(tmp_path, sixteen_cores, quota, expected):
    assert cpu_budget(cgroup=version_1(tmp_path, quota, 100000)) == expected


def test_version_2_wins_where_both_are_mounted(tmp_path, sixteen_cores):
    version_1(tmp_path, 100000, 100000)
    assert cpu_budget(cgroup=version_2(tmp_path, "300000 100000")) == 3.0


def test_without_a_cgroup_the_affinity_mask_decides(tmp_path, sixteen_cores):
    assert cpu_budget(cgroup=tmp_path) == 16.0


def test_the_real_affinity_mask_is_asked(tmp_path):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity masks")
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert cpu_budget(cgroup=tmp_path) == 1.0
    finally:
        os.sched_setaffinity(0, everything)
    assert cpu_budget(cgroup=tmp_path) == float(len(everything))


def test_a_system_without_affinity_masks_counts_its_cores(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_budget(cgroup=tmp_path) == 6.0
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_budget(cgroup=tmp_path) == 1.0


@pytest.mark.parametrize(
    ("workers", "budget", "threads"),
    [(1, 8.0, 8), (2, 8.0, 4), (3, 8.0, 2), (16, 8.0, 1), (1, 0.5, 1), (1, 2.9, 2)],
)
def test_threads_of_all_workers_together_stay_within_the_budget(workers, budget, threads):
    assert threads_per_worker(workers, budget=budget) == threads


def test_without_a_budget_this_machines_is_taken(monkeypatch):
    monkeypatch.setattr(machine, "cpu_budget", lambda: 6.0)
    assert threads_per_worker(2) == 3


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", "fpu sse2 avx2", "x86-64-avx2"),
        ("AMD64", "avx2 avx512f avx512_vnni amx_int8", "x86-64-amx"),
        ("x86_64", "avx2 avx512f avx512_vnni avx_vnni", "x86-64-avx512-vnni"),
        ("x86_64", "avx2 avx_vnni", "x86-64-avx-vnni"),
        ("x86_64", "avx2 avx512f", "x86-64-avx512"),
        ("x86_64", "sse2 avx", "x86-64"),
        ("x86_64", None, "x86-64"),
        ("aarch64", "asimd", "arm64"),
        ("arm64", None, "arm64"),
        ("riscv64", None, "riscv64"),
    ],
)
def test_the_class_is_the_best_that_the_flags_allow(
    tmp_path, monkeypatch, architecture, flags, expected
):
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(
            f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:"
            f" amx_int8_in_another_line\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
        )
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    assert cpu_class.__wrapped__() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_between_what_is_in_use_goes_back_to_the_kernel():
    # Pieces below the size from which each is a mapping of its own; every fiftieth stays, so that
    # the heap's end cannot sink by itself.
    pieces = [bytearray(100_000) for _ in range(1000)]
    kept = pieces[::50]
    full = psutil.Process().memory_info().rss
    del pieces
    machine.give_back_memory()
    assert full - psutil.Process().memory_info().rss > 80_000_000
    assert len(kept) == 20


FAULTS = """
import resource
import numpy as np
from models.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(100 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*(faults() for _ in range(3)))
keep_freed_memory()
print(*(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_large_array_takes_no_new_pages_where_freed_memory_is_kept():
    """In a process of its own: the allocator cannot be told back.

    NumPy asks for large pages where there are any, so that faults may be few.
    """
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    before, after = ([int(number) for number in line.split()] for line in done.stdout.splitlines())
    assert min(before) > 20_000
    assert after[0] > 20_000
    assert max(after[1:]) < 100


def test_elsewhere_memory_is_neither_kept_nor_given_back(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    machine.give_back_memory()
    machine.keep_freed_memory()


@pytest.mark.parametrize(
    ("cgroups", "file"),
    [
        ("0::/pod/one\n", "pod/one/memory.events"),
        ("0::/\n", "memory.events"),
        ("4:memory:/box\n0::/\n", "memory/box/memory.oom_control"),
        ("4:cpu,memory:/elsewhere\n", "memory/memory.oom_control"),
    ],
)
def test_kills_for_want_of_memory_are_counted_in_either_generation(tmp_path, cgroups, file):
    (tmp_path / "process").write_text(cgroups)
    found = {"cgroup": tmp_path, "process": tmp_path / "process"}
    assert out_of_memory_kills(**found) == 0
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("oom 9\noom_kill 3\noom_group_kill 0\n")
    assert out_of_memory_kills(**found) == 3


def test_what_a_process_does_is_said_in_words():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        psutil.Process(process.pid).suspend()
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            pass
        assert doing(process.pid) == " (it is stopped, as by SIGSTOP)"
        process.kill()
    assert doing(2**30) == ""
