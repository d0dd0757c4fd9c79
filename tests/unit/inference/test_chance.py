"""Tails of distributions and adjusted p-values, against SciPy and by their laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from headrace.inference.domain.chance import chi_square_tail, holm, kolmogorov_tail

p_values = st.lists(st.floats(0, 1), max_size=30)


@given(st.floats(0, 1), st.floats(1, 1e6))
def test_kolmogorovs_tail_is_that_of_scipy(distance: float, size: float) -> None:
    scaled = (size**0.5 + 0.12 + 0.11 / size**0.5) * distance
    assert kolmogorov_tail(distance, size) == pytest.approx(special.kolmogorov(scaled), rel=1e-9, abs=1e-12)


@given(st.floats(0, 2000), st.integers(1, 60))
def test_chi_squares_tail_is_that_of_scipy(statistic: float, freedom: int) -> None:
    tail = chi_square_tail(statistic, freedom)
    assert tail == pytest.approx(float(stats.chi2.sf(statistic, freedom)), rel=1e-9, abs=1e-300)


def test_what_cannot_vary_is_no_surprise() -> None:
    assert chi_square_tail(0.0, 0) == 1.0


@given(p_values)
def test_adjusted_values_are_no_smaller_and_keep_their_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(old <= new <= 1 for old, new in zip(values, adjusted, strict=True))
    pairs = sorted(zip(values, adjusted, strict=True))
    assert [new for _, new in pairs] == sorted(adjusted)


@given(p_values.filter(bool))
def test_holm_is_never_stricter_than_bonferroni_and_as_strict_for_the_smallest(values: list[float]) -> None:
    adjusted = holm(values)
    bonferroni = [min(1.0, len(values) * value) for value in values]
    assert all(new <= strict for new, strict in zip(adjusted, bonferroni, strict=True))
    assert min(adjusted) == min(bonferroni)
