"""Comparing windows with profiles: laws, and how often nothing is taken for something."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headrace.errors import InvalidArgument
from headrace.inference.domain.drift import (
    FEWEST,
    PREDICTION,
    Column,
    Comparison,
    DriftRules,
    Finding,
    Numbers,
    Reference,
    Values,
    Window,
    judge,
)

RULES = DriftRules()
RANKS = tuple(hundredth / 100 for hundredth in range(1, 100))

Sample = npt.NDArray[np.float64]


def profile(sample: Sample, *, rank_error: float = 0.0, missing: int = 0) -> Column:
    """A number's profile, as exact as its quantiles are many."""
    values = np.quantile(sample, RANKS, method="inverted_cdf")
    bounds = float(sample.min()), float(sample.max())
    return Column(Numbers(len(sample), *bounds, RANKS, tuple(values.tolist()), rank_error), missing)


def window(**columns: Sample) -> Window:
    rows = len(next(iter(columns.values())))
    return Window(rows, {name: column.astype(np.float32) for name, column in columns.items()})


def only(findings: tuple[Finding, ...]) -> Finding:
    (finding,) = findings
    return finding


def number(reference: Column, sample: Sample) -> Finding:
    return only(judge(RULES, Reference({"x": reference}), window(x=sample)))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Numbers of all kinds: spread, repeated, constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(FEWEST, 400))
    kind = draw(st.sampled_from(["normal", "counts", "mostly zero", "constant"]))
    match kind:
        case "normal":
            return rng.normal(draw(st.floats(-3, 3)), 1, size)
        case "counts":
            return rng.poisson(draw(st.floats(0.1, 5)), size).astype(float)
        case "mostly zero":
            return np.where(rng.random(size) < 0.6, 0.0, rng.exponential(1, size))
        case _:
            return np.full(size, draw(st.floats(-1e6, 1e6)))


@given(samples(), samples())
def test_a_distance_is_never_overrated(reference: Sample, sample: Sample) -> None:
    """Whatever the quantiles leave open counts for no drift."""
    one, other = reference.astype(np.float32), sample.astype(np.float32)
    exact = stats.ks_2samp(one, other, method="asymp")
    assert number(profile(reference), sample).statistic <= exact.statistic + 1e-9


@given(samples(), samples())
def test_a_distance_is_underrated_by_no_more_than_quantiles_are_apart(
    reference: Sample, sample: Sample
) -> None:
    exact = stats.ks_2samp(reference.astype(np.float32), sample.astype(np.float32), method="asymp")
    found = number(profile(reference), sample).statistic
    # Two of them, and a row where shares are no whole hundredths.
    assert found >= exact.statistic - 0.02 - 1 / len(reference)


@given(samples())
def test_the_same_rows_are_no_drift(sample: Sample) -> None:
    finding = number(profile(sample), sample)
    assert (finding.statistic, finding.p_value, finding.drifts) == (0.0, 1.0, False)
    assert finding.psi < 0.05


@given(samples(), samples(), st.floats(0, 0.1))
def test_an_uncertain_profile_says_less(reference: Sample, sample: Sample, error: float) -> None:
    certain, uncertain = (number(profile(reference, rank_error=e), sample) for e in (0.0, error))
    assert uncertain.statistic <= certain.statistic
    assert uncertain.p_value >= certain.p_value


@given(st.lists(st.integers(0, 300), min_size=2, max_size=8), st.integers(0, 2**32))
def test_chi_square_is_that_of_scipy_where_nothing_is_rare(counts: list[int], seed: int) -> None:
    old = [count + 50 for count in counts]
    shares = np.random.default_rng(seed).dirichlet(np.full(len(old), 20.0))
    new = (shares * 1000).astype(int) + 50
    reference = Values(sum(old), {float(value): count for value, count in enumerate(old)})
    answers = [float(value) for value, count in enumerate(new) for _ in range(count)]
    finding = only(judge(RULES, Reference({}, reference), Window(len(answers), answers=answers)))
    exact = stats.chi2_contingency([old, new.tolist()], correction=False)
    assert (finding.column, finding.test) == (PREDICTION, Comparison.CHI_SQUARE)
    assert finding.statistic == pytest.approx(exact.statistic)
    assert finding.p_value == pytest.approx(exact.pvalue)


def test_a_large_window_does_not_alarm_about_nothing_much() -> None:
    rng = np.random.default_rng(1)
    finding = number(profile(rng.normal(0, 1, 100_000)), rng.normal(0.08, 1, 100_000))
    assert finding.p_value < 1e-9
    assert not finding.drifts


def test_a_small_window_does_not_alarm_about_what_may_be_chance() -> None:
    rng = np.random.default_rng(3)
    finding = number(profile(rng.normal(0, 1, 60)), rng.normal(0, 1, 60))
    assert finding.psi > RULES.min_psi
    assert not finding.drifts


def test_a_shifted_number_drifts_and_its_neighbour_does_not() -> None:
    rng = np.random.default_rng(2)
    reference = Reference({name: profile(rng.normal(0, 1, 2000)) for name in ("radius", "texture")})
    found = judge(RULES, reference, window(radius=rng.normal(1, 1, 500), texture=rng.normal(0, 1, 500)))
    assert [(finding.column, finding.drifts) for finding in found] == [("radius", True), ("texture", False)]


def test_a_number_that_was_many_rows_and_is_no_more_drifts() -> None:
    """Its neighbours are hardly apart: only a bin of its own sees it."""
    rng = np.random.default_rng(4)
    was = np.where(rng.random(2000) < 0.5, 0.0, rng.normal(0, 1e-3, 2000))
    assert number(profile(was), rng.normal(0, 1e-3, 500)).drifts


def test_texts_drift_by_their_shares_also_by_new_ones() -> None:
    reference = Reference({"site": Column(Values(1000, {"north": 700, "south": 300}))})
    same = Window(100, texts={"site": ["north"] * 70 + ["south"] * 30})
    new = Window(100, texts={"site": ["north"] * 50 + ["south"] * 20 + ["west"] * 30})
    assert not only(judge(RULES, reference, same)).drifts
    assert only(judge(RULES, reference, new)).drifts


def test_missing_values_drift_by_themselves() -> None:
    rng = np.random.default_rng(5)
    reference = Reference({"x": profile(rng.normal(0, 1, 2000))})
    sample = rng.normal(0, 1, 500)
    sample[:150] = math.nan
    found = judge(RULES, reference, window(x=sample))
    assert {finding.test: finding.drifts for finding in found} == {
        Comparison.KOLMOGOROV_SMIRNOV: False,
        Comparison.MISSING: True,
    }


def test_what_is_float32_to_the_model_is_float32_to_the_comparison() -> None:
    """0.1 is another number in float32: half of the rows would seem to have moved."""
    rng = np.random.default_rng(6)
    reference = np.where(rng.random(1000) < 0.5, 0.1, rng.random(1000))
    assert number(profile(reference), reference).statistic == 0.0


def test_nothing_is_said_of_few_rows_or_of_unknown_columns() -> None:
    few, many = np.arange(FEWEST - 1.0), np.arange(500.0)
    reference = Reference(
        {"few": profile(few), "tensor": Column(None), "texts": Column(Values(10, {"a": 10}))}
    )
    asked = replace(window(few=many, tensor=many, unknown=many), texts={"texts": ["a"] * 500})
    assert judge(RULES, reference, asked) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"requests": FEWEST - 1}, "drift.requests"),
        ({"every": timedelta(seconds=-1)}, "drift.every"),
        ({"windows": 101}, "drift.windows"),
        ({"min_psi": math.nan}, "drift.min_psi"),
        ({"confidence": 0.4}, "drift.confidence"),
    ],
)
def test_rules_that_judge_nothing_are_refused(change: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        replace(RULES, **change)
    assert caught.value.reason == "INVALID_DRIFT"
    assert [violation.field for violation in caught.value.fields] == [field]


def test_nothing_is_taken_for_drift_as_seldom_as_asked_for() -> None:
    """30 dependent columns of all kinds, small profiles and windows: the worst case of both bounds.

    No bound on the effect: what is left is the test's own share of false alarms, at most 5 %.
    """
    rules = replace(RULES, confidence=0.95, min_psi=1e-9)
    rng = np.random.default_rng(7)
    rounds, alarms = 60, 0

    def rows(count: int) -> dict[str, Sample]:
        common = rng.normal(0, 1, (count, 1))
        mixed = 0.7 * common + 0.7 * rng.normal(0, 1, (count, 30))
        return {
            f"x{place}": np.floor(mixed[:, place]) if place % 3 == 0 else mixed[:, place]
            for place in range(30)
        }

    for _ in range(rounds):
        reference = Reference({name: profile(column) for name, column in rows(300).items()})
        alarms += any(finding.drifts for finding in judge(rules, reference, window(**rows(200))))
    # More than 9 of 60 come with a probability of 0.1 % where 5 % are right.
    assert alarms <= 9
