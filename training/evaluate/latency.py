"""How long one image takes on this machine, without HTTP and without batching."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from models.machine import CPU_INFO, cpu_class, threads_per_worker
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.runtime.answer_graph import ANSWER, answering_part
from models.runtime.session import open_session
from training.data.source import Example

MOST_RUNS = 200
MOST_S = 0.8
"""Seconds for each of the three measurements."""
WARM_UP_RUNS = 3
IMAGES = 20


@dataclass(frozen=True)
class MeasuredLatency:
    """Milliseconds of single runs."""

    what: str
    """`preprocess` or `model`."""
    threads: int
    runs: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Latency:
    """Timings at batch size 1, and the machine where they were measured."""

    cpu: str
    cpu_class: str
    threads: int
    """Threads that a process may use here."""
    timings: tuple[MeasuredLatency, ...]


def latency(model: bytes, examples: Sequence[Example], spec: PreprocessSpec) -> Latency:
    """Preprocessing, and the ONNX *model* cut down to its answer, with one thread and with all.

    Each is measured for at most `MOST_RUNS` runs or `MOST_S` seconds.
    """
    encoded = [example.read() for example in examples[:IMAGES]]
    pixels_1HWC = to_pixels(encoded[0], spec)[np.newaxis]
    files = itertools.cycle(encoded)
    timings = [_timed("preprocess", 1, lambda: to_pixels(next(files), spec))]
    part, _ = answering_part(model)
    everything = threads_per_worker(1)
    for threads in sorted({1, everything}):
        session = open_session(part, threads=threads, provider="cpu", origin="latency")
        run = partial(session.run, [ANSWER], {session.get_inputs()[0].name: pixels_1HWC})
        timings.append(_timed("model", threads, run))
    return Latency(_cpu_name(), cpu_class(), everything, tuple(timings))


def _timed(what: str, threads: int, run: Callable[[], object]) -> MeasuredLatency:
    for _ in range(WARM_UP_RUNS):
        run()
    times_ms: list[float] = []
    end = time.perf_counter() + MOST_S
    while len(times_ms) < MOST_RUNS and (not times_ms or time.perf_counter() < end):
        started = time.perf_counter()
        run()
        times_ms.append(1000.0 * (time.perf_counter() - started))
    p50, p99 = np.percentile(times_ms, [50, 99])
    return MeasuredLatency(what, threads, len(times_ms), float(p50), float(p99))


def _cpu_name() -> str:
    """The kernel's name for it; the instruction-set class if the kernel gives none."""
    text = CPU_INFO.read_text(encoding="ascii", errors="replace") if CPU_INFO.is_file() else ""
    name = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else cpu_class()
