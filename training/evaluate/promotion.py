"""Two versions on the same images: the paired test by which `loupe retrain` promotes.

Each image is one of four kinds: both versions right, only the new one, only the old one, both
wrong. Only the second and third kind, the discordant images, tell the versions apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import Interval
from training.evaluate.metrics import Z_95, binomial_at_most

DEFAULT_MARGIN = 0.01
SIGNIFICANT = 0.05

Conclusion = Literal["not worse", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How many images each of two versions gets right, image by image."""

    both_right: int
    only_new: int
    """Right in the new version, wrong in the old one."""
    only_old: int
    both_wrong: int

    @classmethod
    def of(cls, new_N: NDArray[np.bool_], old_N: NDArray[np.bool_]) -> Paired:
        """From whether each version is right on each image, in the same order."""
        both, new, old = (
            int(cells.sum()) for cells in (new_N & old_N, new_N & ~old_N, old_N & ~new_N)
        )
        return cls(
            both_right=both, only_new=new, only_old=old, both_wrong=len(new_N) - both - new - old
        )

    @property
    def count(self) -> int:
        """Images compared."""
        return self.both_right + self.only_new + self.only_old + self.both_wrong

    @property
    def new(self) -> float:
        """Accuracy of the new version."""
        return (self.both_right + self.only_new) / self.count

    @property
    def old(self) -> float:
        """Accuracy of the old version."""
        return (self.both_right + self.only_old) / self.count

    @cached_property
    def difference(self) -> Interval:
        """Accuracy of the new version minus that of the old one, -1 to 1, with a 95 % interval.

        It is Tango's score interval for paired shares. It keeps its coverage with few discordant
        pairs, where the usual one shrinks to a point. Source: Tango 1998, Statistics in Medicine
        17:891-908, equations 11 to 13.
        """
        value = (self.only_new - self.only_old) / self.count
        low = _root(lambda bound: self._score(bound) - Z_95, -1.0, value)
        high = _root(lambda bound: self._score(bound) + Z_95, value, 1.0)
        return Interval(
            value=value, low=min(low, value), high=max(high, value), method="tango score, paired"
        )

    @cached_property
    def p_worse(self) -> float:
        """One-sided exact McNemar test of the hypothesis that the two versions are equally good.

        The probability that so few discordant pairs, or fewer, speak for the new version. 1 where
        there is no discordant pair. Source: McNemar 1947, with the binomial distribution in place
        of its approximation.
        """
        return binomial_at_most(self.only_new, self.only_new + self.only_old, 0.5)

    def finding(self, margin: float = DEFAULT_MARGIN) -> Conclusion:
        """What the comparison shows; only `not worse` promotes.

        `not worse`: the lower end of the interval of the difference is at least -*margin*, so that
        a greater loss is ruled out at 2.5 % error. `worse`: lower, and the exact McNemar test is
        below 5 %. `undecided`: neither; too few images for so many differences. That no image was
        lost shows nothing by itself: of few images none may be lost by luck. The burden of proof
        lies with the new version. Source: the interval's use is the non-inferiority rule of ICH E9,
        section 3.3.2.
        """
        if self.difference.low >= -margin:
            return "not worse"
        return "worse" if self.p_worse < SIGNIFICANT else "undecided"

    def _score(self, difference: float) -> float:
        """Tango's statistic: standard errors from *difference* up to the observed difference.

        It falls as *difference* rises.
        """
        n, gained, lost = self.count, self.only_new, self.only_old
        # The likeliest share of lost images, given the difference: the positive root of a
        # quadratic.
        a, c = 2 * n, -lost * difference * (1.0 - difference)
        b = -gained - lost + (2 * n - gained + lost) * difference
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2.0 * share + difference * (1.0 - difference))
        distance = gained - lost - n * difference
        if variance > 1e-12:
            return distance / math.sqrt(variance)
        # No variance: nothing discordant, or a bound of -1 or 1. Then the distance alone decides.
        return math.copysign(math.inf, distance) if distance else 0.0


def plainly(paired: Paired, *, old_version: int, margin: float = DEFAULT_MARGIN) -> str:
    """Why a version was or was not promoted, in words for those who read no statistics."""
    text = (
        f"of the same {paired.count:,} test images {paired.only_new:,} are right only now, and"
        f" {paired.only_old:,} were right only in version {old_version}"
    )
    match paired.finding(margin):
        case "not worse":
            return f"{text}; a loss of more than {margin:.1%} is ruled out"
        case "worse":
            return f"{text}; that is no chance"
        case _:
            return (
                f"{text}; so few images leave a loss of up to {-paired.difference.low:.1%}"
                f" possible, and {margin:.1%} is allowed"
            )


def explained(paired: Paired, *, old_version: int, margin: float = DEFAULT_MARGIN) -> str:
    """One sentence with every figure that the conclusion rests on.

    If it is undecided, the sentence says what may decide.
    """
    found = paired.difference
    because = {
        "not worse": f"a loss of more than the margin of {margin:.2%} is ruled out",
        "worse": "and that is not chance",
        "undecided": (
            f"a loss of more than the margin of {margin:.2%} cannot be ruled out: more images, or a"
            " greater --margin, may decide"
        ),
    }[paired.finding(margin)]
    return (
        f"accuracy {paired.new:.2%} is {'lower' if paired.new < paired.old else 'not lower'} than"
        f" the {paired.old:.2%} of version {old_version} on the same {paired.count} images,"
        f" {because} (right in both {paired.both_right}, in the new one alone {paired.only_new}, in"
        f" version {old_version} alone {paired.only_old}, in neither {paired.both_wrong};"
        f" difference {found.value:+.2%}, 95% interval {found.low:+.2%} to {found.high:+.2%}, p"
        f" {paired.p_worse:.2g})"
    )


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where the falling *function* changes sign between *low* and *high*, found by bisection."""
    for _ in range(60):
        middle = (low + high) / 2.0
        if function(middle) > 0.0:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
