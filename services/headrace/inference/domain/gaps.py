"""How sure a measured metric is, and how far apart groups are in it: chance must not pass for unfairness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Final

CONFIDENCE: Final = 0.95
LOWER_IS_BETTER: Final = frozenset({"mae"})


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies, with some confidence."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of one group, from so many labels: a share, or a mean, with the variance of what it is of."""

    value: float
    count: int
    variance: float | None = None

    def interval(self, alpha: float = 1 - CONFIDENCE) -> Interval:
        """Of shares Wilson's score interval (1927), of means of what is never negative that of the limit."""
        z = NormalDist().inv_cdf(1 - alpha / 2)
        if self.variance is not None:
            half = z * math.sqrt(self.variance / self.count)
            return Interval(max(0.0, self.value - half), self.value + half)
        n, p = self.count, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # At shares of 0 and 1 a bound is the share itself, but for rounding.
        return Interval(min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


@dataclass(frozen=True, slots=True)
class Gap:
    """How much better one group is than another, within what holds for all pairs of groups at once."""

    best: str
    worst: str
    value: float
    within: Interval

    @property
    def is_certain(self) -> bool:
        """Whether they differ, and not by chance."""
        return self.within.low > 0


def widest_gap(measures: Mapping[str, Measure], *, lower_is_better: bool = False) -> Gap | None:
    """Of the pairs that differ for certain the one that differs most at least, else the best and the worst.

    None of fewer than two groups. Differences are judged by Newcombe's interval (1998, the tenth), from those
    of both groups; with Bonferroni's correction for the number of pairs, since the pair is chosen by how it
    differs: of groups that are all alike one in twenty such sets has a gap that is certain, at most.
    """
    if len(measures) < 2:
        return None
    alpha = (1 - CONFIDENCE) / math.comb(len(measures), 2)
    sign = -1 if lower_is_better else 1
    intervals = {name: measure.interval(alpha) for name, measure in measures.items()}

    def gap(best: str, worst: str) -> Gap:
        value = sign * (measures[best].value - measures[worst].value)
        above = (_reach(best, -sign), _reach(worst, sign))
        below = (_reach(best, sign), _reach(worst, -sign))
        return Gap(best, worst, value, Interval(value - math.hypot(*above), value + math.hypot(*below)))

    def _reach(name: str, direction: int) -> float:
        bound = intervals[name].high if direction > 0 else intervals[name].low
        return abs(bound - measures[name].value)

    # By name where two are equal, so that the answer does not jump.
    ordered = sorted(measures, key=lambda name: (-sign * measures[name].value, name))
    certain = [one for pair in combinations(ordered, 2) if (one := gap(*pair)).is_certain]
    if certain:
        return max(certain, key=lambda one: one.within.low)
    return gap(ordered[0], ordered[-1])
