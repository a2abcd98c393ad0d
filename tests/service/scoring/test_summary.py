"""Drift in numbers, against values worked out by hand and by chance itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.scoring.summary import psi, psi_by_chance


def test_psi_is_the_symmetric_divergence_of_two_shares():
    expected = (0.5 - 0.25) * math.log(0.5 / 0.25) + (0.5 - 0.75) * math.log(0.5 / 0.75)
    assert psi([5, 5], [25, 75]) == pytest.approx(expected, rel=1e-12)
    assert psi([5, 5], [25, 75]) == pytest.approx(psi([25, 75], [5, 5]), rel=1e-12)
    assert psi([3, 7], [30, 70]) == pytest.approx(0.0, abs=1e-15)
    assert math.isfinite(psi([10, 0], [0, 10]))


def test_psi_by_chance_is_passed_by_about_one_pair_in_twenty():
    """2000 pairs: the share that passes has a standard error of 0.5 points; the normal approximation of chi-squared costs another point."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(10, 5.0))
    pairs = [(rng.multinomial(500, shares).tolist(), rng.multinomial(1000, shares).tolist()) for _ in range(2000)]
    passed = sum(psi(one, other) > psi_by_chance(one, other) for one, other in pairs) / len(pairs)
    assert 0.03 < passed < 0.085
