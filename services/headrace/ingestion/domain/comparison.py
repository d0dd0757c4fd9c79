"""How far two versions' values of a field are apart, and how one version's are spread."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Final

import numpy as np

from headrace.ingestion.domain.profile import (
    FieldProfile,
    ValueCounts,
    number_count,
    quantiles,
    shares_up_to,
)

_TENTHS: Final = [tenth / 10 for tenth in range(1, 10)]
_HUNDREDTHS: Final = [hundredth / 100 for hundredth in range(101)]
# Of a field with many values, the reference's most frequent ones are compared, and the rest as one.
_COMPARED_VALUES: Final = 20
# An empty bin's share: the index has no value for 0, and a bin of one row in 10,000 says as much.
_LEAST_SHARE: Final = 1e-4


def population_stability_index(base: FieldProfile, other: FieldProfile) -> float | None:
    """The sum of (p - q) ln(p / q) over bins, with `base` as the reference; None where either has no values.

    Bins are the reference's tenths of a number, in which one that fills several is a bin of its own, or a
    field's most frequent values. Shares come from the sketches: where nothing has changed at all, their error
    makes up to 0.02.
    """
    if not base.count or not other.count:
        return None
    bins = _value_shares(base, other) or _tenths(base, other)
    if bins is None:
        return None
    expected, actual = (np.maximum(shares, _LEAST_SHARE) for shares in bins)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def kolmogorov_smirnov(base: FieldProfile, other: FieldProfile) -> float | None:
    """The largest distance between two numbers' cumulative distributions, 0 to 1; None where there are none.

    Each distribution is right within `profile.RANK_ERROR`.
    """
    if not number_count(base.quantiles) or not number_count(other.quantiles):
        return None
    points = sorted({*quantiles(base, _HUNDREDTHS), *quantiles(other, _HUNDREDTHS)})
    distances = np.subtract(shares_up_to(base, points), shares_up_to(other, points))
    return float(np.abs(distances).max())


def histogram(field: FieldProfile, bins: int, bounds: tuple[float, float] | None = None) -> list[float]:
    """Shares of a number's values in bins of equal width between its bounds, or wider ones.

    One bin where these are equal, or too near to each other to be told apart; none where there are no values.
    """
    if field.moments is None or not field.moments.count:
        return []
    low, high = bounds or (field.moments.min, field.moments.max)
    steps = np.arange(1, bins) / bins
    # Weighted: the distance of two doubles may be none.
    edges = [float(edge) for edge in low * (1 - steps) + high * steps]
    if any(not left < right for left, right in zip([low, *edges], [*edges, high], strict=True)):
        return [1.0]
    ends = [0.0, *shares_up_to(field, edges), 1.0]
    return [right - left for left, right in itertools.pairwise(ends)]


def common_bounds(base: FieldProfile, other: FieldProfile) -> tuple[float, float] | None:
    """The smallest and the largest number of both; None where either has none."""
    one, two = base.moments, other.moments
    if one is None or two is None or not one.count or not two.count:
        return None
    return min(one.min, two.min), max(one.max, two.max)


def _value_shares(base: FieldProfile, other: FieldProfile) -> tuple[list[float], list[float]] | None:
    if base.values is None or other.values is None:
        return None
    compared = base.values.most_frequent(_COMPARED_VALUES)

    def shares(values: ValueCounts, total: int) -> list[float]:
        known = [values.counts.get(value, 0) / total for value in compared]
        return [*known, max(0.0, 1.0 - math.fsum(known))]

    return shares(base.values, base.count), shares(other.values, other.count)


def _tenths(base: FieldProfile, other: FieldProfile) -> tuple[list[float], list[float]] | None:
    if not number_count(base.quantiles) or not number_count(other.quantiles):
        return None
    tenths = quantiles(base, _TENTHS)
    # A number that is many of the rows is a bin of its own: what moves below it has left it.
    many = {number for number, count in Counter(tenths).items() if count > 1}
    edges = sorted({*tenths, *(math.nextafter(number, -math.inf) for number in many)})

    def shares(field: FieldProfile) -> list[float]:
        ends = [0.0, *shares_up_to(field, edges), 1.0]
        return [right - left for left, right in itertools.pairwise(ends)]

    return shares(base), shares(other)
