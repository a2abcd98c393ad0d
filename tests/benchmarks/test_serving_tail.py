"""The figures of the latency scenario, on made-up answers."""

import json

import numpy as np
import pytest

from benchmarks.serving.answers import Answer, Run
from benchmarks.serving.tail import ideal_p99_ms, where_ms


def test_the_time_of_slow_answers_is_split_into_parts():
    def body(number):
        timing = {
            "read": 1.0,
            "decode": 2.0,
            "queue": float(number),
            "inference": 3.0,
            "total": 7.0 + number,
        }
        return json.dumps({"timing_ms": timing}).encode()

    answers = [Answer(0.0, 0.0, (10.0 + number) / 1000.0, 200, 0) for number in range(200)]
    refused = Answer(0.0, 0.0, 9.0, 503, 0)
    found = where_ms(Run([*answers, refused], 0.0, 1.0, 0.0), [*map(body, range(200)), b"{}"])
    assert found["median"] == pytest.approx(
        {"read": 1.0, "decode": 2.0, "queue": 100.5, "inference": 3.0, "other": 1.0, "outside": 3.0}
    )
    assert found["slowest"] == pytest.approx(
        {"read": 1.0, "decode": 2.0, "queue": 198.5, "inference": 3.0, "other": 1.0, "outside": 3.0}
    )


def test_the_ideal_p99_agrees_with_queueing_theory():
    """M/M/1: the time to the answer is exponential with the mean 1 / (1 - load) service times."""
    exponential_ms = np.random.default_rng(0).exponential(2.0, 100_000)
    p99_ms = ideal_p99_ms(exponential_ms, load=0.7, servers=1, seed=1, even=False)
    assert p99_ms == pytest.approx(np.log(100) / (1 - 0.7) * exponential_ms.mean(), rel=0.1)
    assert ideal_p99_ms(np.array([3.0]), load=0.7, servers=2, seed=1, even=True) == pytest.approx(
        3.0
    ), "nobody waits for anybody"
