"""Tests that may be looked at as often as one likes while data comes in.

Each is an e-process: a number E that starts at 1 and, while the null hypothesis holds, exceeds 1/alpha ever,
at whatever time it is looked at, with probability at most alpha (Ville's inequality). A fixed-sample test
that is repeated each second has no such bound: sooner or later it rejects anything.

E is a mixture likelihood over the largest likelihood that the null allows: universal inference (Wasserman,
Ramdas and Balakrishnan, PNAS 2020) with the mixture of Robbins (1970). The mixture of a Bernoulli share is
the beta distribution of Jeffreys, so that counts suffice, whatever the order in which they came. It is exact,
for rare events and few samples too. Everything is in logarithms.

An interval holds the values that were not rejected. Being valid at every time at once, it is a confidence
sequence.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_JEFFREYS = math.log(math.pi)  # of the beta function at (1/2, 1/2)
# Halvings of an interval of shares: finer than any number of requests.
_HALVINGS = 48
# Halvings of an interval of effects, which people read.
_READABLE = 16


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of `total` trials were hits."""

    hits: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Hits of all trials; 0 where there were none."""
        return self.hits / self.total if self.total else 0.0

    @property
    def misses(self) -> int:
        """Trials that were no hits."""
        return self.total - self.hits


def log_e_above(tally: Tally, share: float) -> float:
    """Log of E against the null that hits have at most this probability."""
    return _log_mixture(tally) - _log_likelihood(tally, min(tally.share, share))


def log_e_increase(new: Tally, old: Tally, margin: float) -> float:
    """Log of E against the null that the new probability is at most the old one plus the margin.

    The margin lies between -1 and 1, neither included.
    """
    if new.share <= old.share + margin or not old.total or not new.total:
        # The null allows what was seen.
        best = _log_likelihood(new, new.share) + _log_likelihood(old, old.share)
    else:
        at = _likeliest_old(new, old, margin)
        best = _log_likelihood(new, at + margin) + _log_likelihood(old, at)
    return _log_mixture(new) + _log_mixture(old) - best


def increase_interval(new: Tally, old: Tally, log_threshold: float) -> tuple[float, float]:
    """Differences of the probabilities, new less old, that neither side rejects at the threshold."""
    return (
        _largest_rejected(lambda margin: log_e_increase(new, old, margin), log_threshold, -1.0),
        -_largest_rejected(lambda margin: log_e_increase(old, new, margin), log_threshold, -1.0),
    )


def share_interval(tally: Tally, log_threshold: float) -> tuple[float, float]:
    """Probabilities that neither side rejects at the threshold."""
    misses = Tally(tally.misses, tally.total)
    return (
        _largest_rejected(lambda share: log_e_above(tally, share), log_threshold, 0.0),
        1 - _largest_rejected(lambda share: log_e_above(misses, share), log_threshold, 0.0),
    )


class Histogram:
    """Counts by whole-numbered bucket, with those below and above any bucket at hand."""

    def __init__(self, counts: Mapping[int, int]) -> None:
        """`buckets` are those with counts, rising."""
        self.buckets = sorted(counts)
        self._up_to = [0, *itertools.accumulate(counts[bucket] for bucket in self.buckets)]

    @property
    def total(self) -> int:
        """How many were counted."""
        return self._up_to[-1]

    def below(self, bucket: int) -> Tally:
        """How many are in lower buckets."""
        return Tally(self._up_to[bisect_left(self.buckets, bucket)], self.total)

    def above(self, bucket: int) -> Tally:
        """How many are in higher buckets."""
        return Tally(self.total - self._up_to[bisect_right(self.buckets, bucket)], self.total)

    def quantile(self, probability: float) -> int:
        """The first bucket with at least this share in it or below it; 0 where nothing was counted."""
        needed = math.ceil(probability * self.total - 1e-9)
        return self.buckets[max(0, bisect_left(self._up_to, needed) - 1)] if self.buckets else 0


def log_e_quantile(new: Histogram, old: Histogram, probability: float, shift: int) -> float:
    """Log of E against the null that the new quantile is at most so many buckets above the old one.

    At the old version's true quantile q the share above q and the share below q are known, and so, under the
    null, is a bound on the new version's share above q + shift: three Bernoulli tests. q is not known, so it
    is the one that rejects least that counts (after Howard and Ramdas, "Sequential estimation of quantiles",
    2022).
    """
    beyond = 1 - probability
    # Between these the counts do not change.
    candidates = {bucket - shift for bucket in new.buckets}
    for bucket in old.buckets:
        candidates |= {bucket, bucket + 1}
    first = min(candidates, default=0) - 1
    return min(
        log_e_above(new.above(at + shift), beyond)
        + _log_mean(log_e_above(old.above(at), beyond), log_e_above(old.below(at), probability))
        for at in (first, *candidates)
    )


def quantile_shift_interval(
    new: Histogram, old: Histogram, probability: float, log_threshold: float
) -> tuple[int | None, int | None]:
    """Shifts of the quantile, in buckets, that neither side rejects; None where nothing bounds it."""
    seen = [*new.buckets, *old.buckets]
    width = max(seen, default=0) - min(seen, default=0) + 2

    def largest_rejected(one: Histogram, other: Histogram) -> int | None:
        low, high = -width, width
        if log_e_quantile(one, other, probability, low) < log_threshold:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            rejected = log_e_quantile(one, other, probability, middle) >= log_threshold
            low, high = (middle, high) if rejected else (low, middle)
        return low

    above, below = largest_rejected(new, old), largest_rejected(old, new)
    return (None if above is None else above + 1), (None if below is None else -below - 1)


def _likeliest_old(new: Tally, old: Tally, margin: float) -> float:
    """The old probability that makes both tallies likeliest where the new one is that plus the margin."""
    # The likelihood is concave along this line: where its slope changes sign is its top.
    low, high = max(0.0, -margin), min(1.0, 1.0 - margin)
    for _ in range(_HALVINGS):
        at = (low + high) / 2
        slope = _slope(new, at + margin) + _slope(old, at)
        low, high = (at, high) if slope > 0 else (low, at)
    return (low + high) / 2


def _slope(tally: Tally, share: float) -> float:
    rising = tally.hits / share if tally.hits else 0.0
    return rising - (tally.misses / (1 - share) if tally.misses else 0.0)


def _log_mixture(tally: Tally) -> float:
    return (
        math.lgamma(tally.hits + 0.5)
        + math.lgamma(tally.misses + 0.5)
        - math.lgamma(tally.total + 1)
        - _JEFFREYS
    )


def _log_likelihood(tally: Tally, share: float) -> float:
    if (tally.hits and share <= 0) or (tally.misses and share >= 1):
        return -math.inf
    hits = tally.hits * math.log(share) if tally.hits else 0.0
    return hits + (tally.misses * math.log1p(-share) if tally.misses else 0.0)


def _log_mean(one: float, other: float) -> float:
    high = max(one, other)
    if math.isinf(high):
        return high
    return high + math.log((math.exp(one - high) + math.exp(other - high)) / 2)


def _largest_rejected(log_e: Callable[[float], float], log_threshold: float, lowest: float) -> float:
    """The largest number up to 1 that is rejected, as E falls; the lowest where none is."""
    low, high = lowest, 1.0
    for _ in range(_READABLE):
        middle = (low + high) / 2
        low, high = (middle, high) if log_e(middle) >= log_threshold else (low, middle)
    return low
