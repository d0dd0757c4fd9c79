"""How probable so much is by chance alone: the tails of two distributions, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# The first term that is left out is below 1e-17 of the sum from here on.
_TERMS: Final = 100


def kolmogorov_tail(distance: float, size: float) -> float:
    """The probability of at least such a distance between two samples of one distribution.

    `size` is n m / (n + m) of samples of n and m. Kolmogorov's limit with Stephens' correction for small
    samples (1970); where values repeat, the true probability is smaller.
    """
    root = math.sqrt(size)
    scaled = (root + 0.12 + 0.11 / root) * distance
    # Where the series converges slowly, the probability is 1 to twelve digits.
    if scaled < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, _TERMS))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def chi_square_tail(statistic: float, freedom: int) -> float:
    """The probability of at least such a sum of squares of `freedom` standard normal numbers; 1 of none."""
    half = statistic / 2
    if freedom < 1 or half <= 0:
        return 1.0
    # Of a whole number of degrees it is a finite sum (Abramowitz and Stegun, 26.4.4 and 26.4.5).
    if freedom % 2:
        first, powers = math.erfc(math.sqrt(half)), [k + 0.5 for k in range((freedom - 1) // 2)]
    else:
        first, powers = 0.0, [float(k) for k in range(freedom // 2)]
    terms = (math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers)
    return min(1.0, first + math.fsum(terms))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm, 1979), in their order.

    Whatever is at most alpha then was found by chance, if by any, with a probability of at most alpha for
    all of them together, however they depend on each other.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = highest
    return adjusted
