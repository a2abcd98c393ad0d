"""What a process may use of its machine: never more than the affinity mask or the container's quota, whichever generation of cgroup says so."""

import os
import platform

import psutil
import pytest

from models import machine
from models.machine import cpu_budget, cpu_class, threads_per_worker


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
    [("max 100000\n", 16.0), ("200000 100000\n", 2.0), ("50000 100000\n", 0.5), ("150000 100000\n", 1.5), ("9900000 100000\n", 16.0)],
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


@pytest.mark.parametrize(("workers", "budget", "threads"), [(1, 8.0, 8), (2, 8.0, 4), (3, 8.0, 2), (16, 8.0, 1), (1, 0.5, 1), (1, 2.9, 2)])
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
def test_the_class_is_the_best_that_the_flags_allow(tmp_path, monkeypatch, architecture, flags, expected):
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_int8_in_another_line\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    assert cpu_class.__wrapped__() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_between_what_is_in_use_goes_back_to_the_kernel():
    # Pieces below the size from which each is a mapping of its own; every fiftieth stays, so that the heap's end cannot sink by itself.
    pieces = [bytearray(100_000) for _ in range(1000)]
    kept = pieces[::50]
    full = psutil.Process().memory_info().rss
    del pieces
    machine.give_back_memory()
    assert full - psutil.Process().memory_info().rss > 80_000_000
    assert len(kept) == 20


def test_elsewhere_giving_memory_back_does_nothing(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    machine.give_back_memory()
