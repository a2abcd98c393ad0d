"""The results of a load generator: the answer to each request, and the figures of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

UNANSWERED = 0
"""Status of a request whose connection broke or whose answer did not come."""
OK = 200


class Answer(NamedTuple):
    """The result of one request. Times are seconds on the clock of `time.perf_counter`."""

    due_s: float
    sent_s: float
    done_s: float
    status: int
    index: int


@dataclass(frozen=True)
class Run:
    """All answers of a run, and the CPU time of the generator."""

    answers: list[Answer]
    begun_s: float
    """Start of the measured interval; earlier answers are warm-up."""
    ended_s: float
    cpu_s: float
    """CPU time of the generator, with the warm-up."""

    @property
    def measured(self) -> list[Answer]:
        """Answers in the interval; in an open loop, answers that were due in it."""
        return [answer for answer in self.answers if answer.done_s >= self.begun_s]

    @property
    def seconds(self) -> float:
        """Length of the measured interval."""
        return self.ended_s - self.begun_s

    def per_second(self, status: int = OK) -> float:
        """Answers of *status* in the measured interval, for each second of it."""
        return (
            sum(
                self.begun_s <= a.done_s <= self.ended_s and a.status == status
                for a in self.answers
            )
            / self.seconds
        )

    def counts(self) -> dict[str, int]:
        """Measured answers by status; `0` counts those without an answer."""
        return {
            str(status): count
            for status, count in sorted(Counter(a.status for a in self.measured).items())
        }

    def latencies_ms(
        self, *, status: int = OK, since: str = "due"
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Milliseconds of each measured answer of *status*, *since* it was `due` or `sent`."""
        origin = {"due": 0, "sent": 1}[since]
        return np.array(
            [(a.done_s - a[origin]) * 1000.0 for a in self.measured if a.status == status]
        )

    @property
    def cpu_us_per_request(self) -> float:
        """What one request costs the generator, in microseconds of CPU."""
        return 1e6 * self.cpu_s / max(1, len(self.answers))


def percentiles_ms(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median, tail and greatest of *values*; empty if there are none."""
    if len(values) == 0:
        return {}
    p50, p90, p99, p999 = np.percentile(values, (50, 90, 99, 99.9))
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "p99.9": float(p999),
        "greatest": float(values.max()),
    }
