"""One way to make int8 of a float graph, and what came of it.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.runtime.answer_graph import answering_part
from models.runtime.session import open_session
from training.export.int8.graph import INPUT, Array
from training.export.int8.statistics import Method

BATCH = 16
TIMED_RUNS = 40
WARM_UP_RUNS = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a candidate is made with."""

    method: Method = "min-max"
    """How the range of each value is chosen from its histogram."""
    bias_corrected: bool = False
    pair_safe: bool = False
    """Weights so coarse that no kernel overflows (`pair_safe.py`)."""
    in_float: tuple[str, ...] = ()
    """Nodes that are not quantised."""

    def __str__(self) -> str:
        parts = [self.method, *["bias corrected"] * self.bias_corrected]
        parts += ["pair-safe weights" if self.pair_safe else "signed weights"]
        parts += [f"{len(self.in_float)} layers in float"] * bool(self.in_float)
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A step of the search: what was tried, and what it gives."""

    name: str
    accuracy: float
    """On the judging images, which no candidate was calibrated on."""
    loss_points: float
    """Accuracy that fp32 has more, in percentage points; negative where it has less."""
    agreement: float
    """Share of the judging images with the same answer as fp32."""
    distance: float
    """Mean squared difference of the logits from fp32's; infinite if a logit is no number."""
    megabytes: float
    ms: float
    """Median of one image on one thread."""
    speedup: float
    """fp32's time divided by its own, over interleaved runs."""
    inside: bool
    """Within the accuracy budget."""
    taken: bool = False
    settings: Settings = Settings()
    encoded: bytes = dataclasses.field(default=b"", repr=False, compare=False)

    def as_json(self) -> dict[str, object]:
        """Everything but the model itself; `name` says its settings in words."""
        return {
            name: value for name, value in vars(self).items() if name not in ("encoded", "settings")
        }


class Bench:
    """Judges candidates against the float model, always on the same images."""

    def __init__(
        self,
        encoded: bytes,
        pixels_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        *,
        budget_points: float,
    ) -> None:
        self.pixels_NHWC = pixels_NHWC
        self.labels_N = labels_N
        self.budget_points = budget_points
        self.reference = answering_part(encoded)[0]
        self.logits_NK = scores(self.reference, pixels_NHWC)
        self.right = int((self.logits_NK.argmax(axis=1) == labels_N).sum())
        self.float_row = self._row("fp32", encoded, self.logits_NK, ms=0.0, speedup=1.0)

    def judge(self, name: str, encoded: bytes) -> Candidate:
        """The row of the search's table for model *encoded*."""
        part = answering_part(encoded)[0]
        race = interleaved(self.reference, part, self.pixels_NHWC[:1])
        self.float_row = dataclasses.replace(self.float_row, ms=race.first_ms)
        logits_NK = scores(part, self.pixels_NHWC)
        return self._row(name, encoded, logits_NK, ms=race.second_ms, speedup=race.speedup)

    def _row(
        self, name: str, encoded: bytes, logits_NK: Array, *, ms: float, speedup: float
    ) -> Candidate:
        answer_N = logits_NK.argmax(axis=1)
        right, count = int((answer_N == self.labels_N).sum()), len(self.labels_N)
        # From whole numbers of images: a budget of exactly one point must not fail by a rounding
        # error.
        loss_points = 100.0 * (self.right - right) / count
        finite = bool(np.isfinite(logits_NK).all())
        return Candidate(
            name=name,
            accuracy=right / count,
            loss_points=loss_points,
            agreement=float((answer_N == self.logits_NK.argmax(axis=1)).mean()),
            distance=float(((logits_NK - self.logits_NK) ** 2).mean()) if finite else math.inf,
            megabytes=len(encoded) / 1e6,
            ms=ms,
            speedup=speedup,
            inside=finite and loss_points <= self.budget_points + 1e-9,
            encoded=encoded,
        )


def scores(encoded: bytes, pixels_NHWC: NDArray[np.uint8]) -> Array:
    """Logits [N,K] of the ONNX model *encoded*."""
    session = open_session(encoded, threads=0, provider="cpu", origin="candidate")
    parts = [
        session.run(["logits"], {INPUT: pixels_NHWC[start : start + BATCH]})[0]
        for start in range(0, len(pixels_NHWC), BATCH)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Race:
    """Two models, timed in turns."""

    first_ms: float
    """Median of its runs, as of the second's."""
    second_ms: float
    speedup: float
    """How many times as fast the second is: the median over pairs of neighbouring runs, so that a
    machine that slows down meanwhile does not shift it."""


def interleaved(
    first: bytes, second: bytes, pixels_1HWC: NDArray[np.uint8], *, runs: int = TIMED_RUNS
) -> Race:
    """*first* and *second* on one thread, *runs* times each.

    They run in turns, so that other work of the machine slows both.
    """
    sessions = [
        open_session(model, threads=1, provider="cpu", origin="candidate")
        for model in (first, second)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + WARM_UP_RUNS):
        for session, taken in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(["probabilities"], {INPUT: pixels_1HWC})
            if run >= WARM_UP_RUNS:
                taken.append(1000.0 * (time.perf_counter() - started))
    speedup = statistics.median(before / after for before, after in zip(*times, strict=True))
    return Race(statistics.median(times[0]), statistics.median(times[1]), speedup)
