"""Rates: what passes in any stretch of time, and that several processes count as one."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.gate import rate_limit as module
from service.gate.rate_limit import RateLimit, network_of


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_the_rate_and_the_wait_is_exact():
    clock = Clock()
    limit = RateLimit(rate_per_s=2.0, burst=3, clock=clock)
    assert [limit.take("a") for _ in range(3)] == [0.0] * 3
    assert limit.take("a") == pytest.approx(0.5)
    clock.now += 0.3
    assert limit.take("a") == pytest.approx(0.2), "a refusal is not counted"
    clock.now += 0.2
    assert limit.take("a") == 0.0
    assert limit.take("b") == 0.0, "another client has a bucket of its own"
    clock.now += 100.0
    assert [limit.take("a") > 0.0 for _ in range(4)] == [
        False,
        False,
        False,
        True,
    ], "what was saved up is a burst, and no more"


def test_asking_for_the_wait_counts_nothing():
    limit = RateLimit(rate_per_s=0.001, burst=2, clock=Clock())
    assert [limit.take("a", count=False) for _ in range(5)] == [0.0] * 5
    assert [limit.take("a") for _ in range(2)] == [0.0] * 2
    assert limit.take("a", count=False) == limit.take("a", count=False) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_one_customer_of_ipv6_is_one_client(address, network):
    assert network_of(address) == network


@given(
    st.lists(st.floats(0.0, 2.0), max_size=60), st.sampled_from([0.5, 1.0, 7.0]), st.integers(1, 5)
)
def test_no_stretch_of_time_sees_more_than_the_burst_and_the_rate(pauses_s, rate_per_s, burst):
    clock = Clock()
    limit = RateLimit(rate_per_s=rate_per_s, burst=burst, clock=clock)
    passed = []
    for pause_s in pauses_s:
        clock.now += pause_s
        wait_s = limit.take("a")
        if wait_s == 0.0:
            passed.append(clock.now)
        else:
            assert wait_s <= 1.0 / rate_per_s + 1e-6
    for first, begin in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            # 1e-6: rounding of sums around 1000.
            assert last - first + 1 <= burst + (end - begin) * rate_per_s + 1e-6


def test_processes_that_share_a_file_count_as_one(tmp_path):
    limit = RateLimit(rate_per_s=0.001, burst=5, path=tmp_path / "rates")
    assert [limit.take("a") for _ in range(2)] == [0.0, 0.0]
    program = (
        "import pathlib, sys; from service.gate.rate_limit import RateLimit; limit ="
        " RateLimit(rate_per_s=0.001, burst=5, path=pathlib.Path(sys.argv[1]));"
        " print(sum(limit.take('a') == 0.0 for _ in range(9)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rates")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"
    assert limit.take("a") > 900.0


def test_more_clients_than_the_table_holds_forget_those_gone_longest(monkeypatch):
    monkeypatch.setattr(module, "SLOTS", 8)
    clock = Clock()
    limit = RateLimit(rate_per_s=1.0, burst=1, clock=clock)
    for number in range(8):
        assert limit.take(str(number)) == 0.0
        clock.now += 0.01
    assert limit.take("newcomer") == 0.0
    assert limit.take("7") > 0.0
    assert limit.take("0") == 0.0, "the oldest made room"
