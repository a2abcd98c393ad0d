"""The paired test that promotes: against scipy, closed forms, and counts worked by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest

from training.evaluate.metrics import Z_95
from training.evaluate.promotion import DEFAULT_MARGIN, Paired, explained


def counts(only_new, only_old, *, count, both_wrong=0):
    return Paired(
        both_right=count - only_new - only_old - both_wrong,
        only_new=only_new,
        only_old=only_old,
        both_wrong=both_wrong,
    )


def numeric_score(gained, lost, count, difference):
    """Tango's statistic, with the likeliest share of lost images searched for instead of solved
    for.
    """

    def loss(share):
        cells = np.array([share + difference, share, 1 - 2 * share - difference])
        return -np.sum(
            np.array([gained, lost, count - gained - lost]) * np.log(np.maximum(cells, 1e-300))
        )

    bounds = (max(0.0, -difference), (1.0 - difference) / 2.0)
    share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - count * difference) / np.sqrt(
        count * (2 * share + difference * (1 - difference))
    )


def test_images_are_counted_by_who_is_right():
    new_N = np.array([True, True, True, False, False, True])
    old_N = np.array([True, True, False, True, False, False])
    paired = Paired.of(new_N, old_N)
    assert paired == Paired(both_right=2, only_new=2, only_old=1, both_wrong=1)
    assert (paired.count, paired.new, paired.old) == (6, 4 / 6, 3 / 6)
    assert paired.difference.value == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("gained", "lost", "count"),
    [(4, 9, 100), (12, 2, 50), (1, 1, 40), (20, 70, 10_000), (0, 4, 6), (7, 0, 90)],
)
def test_the_interval_is_where_tangos_statistic_is_the_normal_quantile(gained, lost, count):
    found = counts(gained, lost, count=count).difference
    value = (gained - lost) / count
    low = brentq(lambda d: numeric_score(gained, lost, count, d) - Z_95, -1 + 1e-9, value - 1e-9)
    high = brentq(lambda d: numeric_score(gained, lost, count, d) + Z_95, value + 1e-9, 1 - 1e-9)
    # The search for the share is good to about eight digits.
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert (found.value, found.method) == (value, "tango score, paired")


@pytest.mark.parametrize("count", [1, 6, 40, 360])
def test_without_a_discordant_pair_the_interval_has_a_closed_form(count):
    bound = Z_95**2 / (count + Z_95**2)
    found = counts(0, 0, count=count).difference
    assert (found.low, found.value, found.high) == pytest.approx((-bound, 0.0, bound), abs=1e-12)


def test_swapping_the_versions_turns_the_interval_round():
    one, other = counts(3, 11, count=200).difference, counts(11, 3, count=200).difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_an_interval_holds_its_value_at_every_count():
    wrong = [
        (gained, lost, count)
        for count in (1, 2, 5, 9)
        for gained in range(count + 1)
        for lost in range(count + 1 - gained)
        if not -1.0
        <= (d := counts(gained, lost, count=count).difference).low
        <= d.value
        <= d.high
        <= 1.0
    ]
    assert wrong == []


@pytest.mark.parametrize(("gained", "lost"), [(0, 4), (2, 9), (9, 2), (5, 5), (400, 460)])
def test_p_is_the_exact_binomial_tests(gained, lost):
    expected = binomtest(gained, gained + lost, alternative="less").pvalue
    assert counts(gained, lost, count=1000).p_worse == pytest.approx(expected, rel=1e-9)


def test_thousands_of_differences_do_not_overflow():
    assert counts(20_000, 20_400, count=100_000).p_worse == pytest.approx(
        binomtest(20_000, 40_400, alternative="less").pvalue, rel=1e-6
    )
    assert counts(0, 0, count=10).p_worse == pytest.approx(1.0)


def test_a_truly_worse_version_is_seldom_promoted():
    """At a true loss of twice the margin on 800 images the rule errs far less often than one time
    in twenty; an equal one has a chance.
    """
    rng = np.random.default_rng(2)

    def promoted(gain, loss):
        draws = rng.multinomial(800, [gain, loss, 1 - gain - loss], size=400)
        findings = [counts(int(g), int(lo), count=800).finding() for g, lo, _ in draws]
        return sum(finding == "not worse" for finding in findings) / 400

    assert promoted(0.005, 0.025) < 0.02
    assert promoted(0.005, 0.005) > 0.6


@pytest.mark.parametrize("gained", range(0, 40, 3))
def test_another_gained_image_never_costs_the_promotion(gained):
    lows = [counts(gained + more, 4, count=400).difference.low for more in range(2)]
    assert lows[0] < lows[1]


def test_the_rule_is_that_of_the_documented_examples():
    document = (Path(__file__).resolve().parents[3] / "docs/evaluation.md").read_text(
        encoding="utf-8"
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in document.splitlines()
        if re.match(r"\| \d+ \|", line)
    ]
    assert len(rows) == 11
    assert {row[-1] for row in rows} == {"not worse", "worse", "undecided"}
    for count, gained, lost, *figures in rows:
        paired = counts(int(gained), int(lost), count=int(count))
        found = paired.difference
        assert figures == [
            f"{found.value:+.2%}",
            f"{found.low:+.2%} to {found.high:+.2%}",
            f"{paired.p_worse:.2g}",
            paired.finding(),
        ]
    assert f"`--margin` ({DEFAULT_MARGIN})" in document


@pytest.mark.parametrize(
    ("paired", "words"),
    [
        (
            counts(3, 0, count=40),
            (
                "accuracy 100.00% is not lower than the 92.50% of version 7 on the same 40 images,"
                " a loss of more than the margin of 1.00% cannot be ruled out: more images, or a"
            ),
        ),
        (
            counts(10, 15, count=2000),
            (
                "accuracy 99.25% is lower than the 99.50% of version 7 on the same 2000 images, a"
                " loss of more than the margin"
            ),
        ),
        (
            counts(20, 50, count=2000, both_wrong=30),
            (
                "images, and that is not chance (right in both 1900, in the new one alone 20, in"
                " version 7 alone 50"
            ),
        ),
        (
            counts(5, 1, count=40),
            (
                "cannot be ruled out: more images, or a greater --margin, may decide (right in both"
                " 34, "
            ),
        ),
        (
            counts(20, 50, count=2000),
            "in neither 0; difference -1.50%, 95% interval -2.37% to -0.70%, p 0.00022)",
        ),
    ],
)
def test_the_explanation_has_the_figures(paired, words):
    assert words in explained(paired, old_version=7)
