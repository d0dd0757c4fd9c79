from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from headrace.ingestion.domain.comparison import (
    common_bounds,
    histogram,
    kolmogorov_smirnov,
    population_stability_index,
)
from headrace.ingestion.domain.profile import RANK_ERROR, FieldProfile, extended
from headrace.ingestion.domain.schema import Field, FieldType, Schema

SCHEMA = Schema("id", (Field("x", FieldType.FLOAT64),), Field("y", FieldType.STRING))
RANDOM = np.random.default_rng(3)


def number(values: object) -> FieldProfile:
    field = extended(None, SCHEMA, [pa.record_batch({"x": pa.array(values, pa.float64())})]).field("x")
    assert field is not None
    return field


def text(**counts: int) -> FieldProfile:
    values = [value for value, count in counts.items() for _ in range(count)]
    field = extended(None, SCHEMA, [pa.record_batch({"y": pa.array(values, pa.string())})]).field("y")
    assert field is not None
    return field


def test_equal_distributions_are_not_apart() -> None:
    one, other = number(RANDOM.normal(size=50_000)), number(RANDOM.normal(size=50_000))
    psi, ks = population_stability_index(one, other), kolmogorov_smirnov(one, other)
    assert psi is not None
    assert psi < 0.02
    assert ks is not None
    assert ks < 4 * RANK_ERROR


def test_a_moved_distribution_is_as_far_away_as_theory_says() -> None:
    one, other = number(RANDOM.normal(size=50_000)), number(RANDOM.normal(1, size=50_000))
    # Of two normal distributions one deviation apart: 2 * Phi(0.5) - 1.
    assert kolmogorov_smirnov(one, other) == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=4 * RANK_ERROR)
    psi = population_stability_index(one, other)
    assert psi is not None
    assert 0.6 < psi < 1.2


def test_values_are_compared_by_their_shares() -> None:
    assert population_stability_index(text(a=50, b=50), text(a=500, b=500)) == pytest.approx(0)
    expected = (0.75 - 0.5) * math.log(0.75 / 0.5) + (0.25 - 0.5) * math.log(0.25 / 0.5)
    assert population_stability_index(text(a=50, b=50), text(a=75, b=25)) == pytest.approx(expected)
    new_value = population_stability_index(text(a=50, b=50), text(a=40, b=40, c=20))
    assert new_value is not None
    assert new_value > 1
    assert kolmogorov_smirnov(text(a=1), text(a=1)) is None


def test_what_has_no_values_is_not_compared() -> None:
    assert population_stability_index(number([]), number([1.0])) is None
    assert kolmogorov_smirnov(number([1.0]), number([])) is None
    assert histogram(number([]), 10) == []
    unseen = replace(number([]), count=3)
    assert population_stability_index(number([1.0]), unseen) is None
    assert kolmogorov_smirnov(unseen, number([1.0])) is None
    assert histogram(unseen, 10) == []


def test_constants_are_compared_too() -> None:
    same, other = number([2.0] * 10), number([3.0] * 10)
    assert population_stability_index(same, same) == pytest.approx(0)
    assert kolmogorov_smirnov(same, other) == 1.0
    apart = population_stability_index(same, other)
    assert apart is not None
    assert apart > 5
    assert histogram(same, 10) == [1.0]


@pytest.mark.parametrize("constant", [5.0, 0.0, -1.7e308])
@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize("direction", [-1, 1])
def test_a_number_that_is_most_of_the_reference_can_move_either_way(
    constant: float, others: int, direction: int
) -> None:
    tail = list(range(10, 10 + others))
    moved = constant + direction * max(1.0, abs(constant) * 0.01)
    base = number([constant] * (100 - others) + tail)
    assert population_stability_index(base, base) == pytest.approx(0)
    apart = population_stability_index(base, number([moved] * (100 - others) + tail))
    assert apart is not None
    assert apart > 5


@pytest.mark.parametrize(("low", "high"), [(0.0, 10.0), (-1.7e308, 1.7e308), (5e-324, 1e-323)])
def test_a_histogram_has_all_rows_in_its_bins(low: float, high: float) -> None:
    bins = histogram(number([low, low, high, high]), 10)
    assert sum(bins) == pytest.approx(1.0)
    if len(bins) == 10:
        assert (bins[0], bins[-1]) == (0.5, 0.5)


def test_two_histograms_can_have_one_scale() -> None:
    low, high = number([0.0, 5.0]), number([7.0, 10.0])
    bounds = common_bounds(low, high)
    assert bounds == (0.0, 10.0)
    assert histogram(low, 5, bounds) == pytest.approx([0.5, 0.0, 0.5, 0.0, 0.0])
    assert histogram(high, 5, bounds) == pytest.approx([0.0, 0.0, 0.0, 0.5, 0.5])
    assert common_bounds(low, number([])) is None
