from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headrace.inference.domain.gaps import Measure, widest_gap


def share(hits: int, total: int) -> Measure:
    return Measure(hits / total, total)


shares = st.integers(1, 500).flatmap(lambda total: st.integers(0, total).map(lambda hits: share(hits, total)))
means = st.builds(Measure, st.floats(0, 100), st.integers(2, 500), st.floats(0, 100))
groups = st.one_of(
    st.dictionaries(st.text(max_size=3), shares, min_size=2, max_size=8),
    st.dictionaries(st.text(max_size=3), means, min_size=2, max_size=8),
)


@given(st.integers(1, 500), st.data())
def test_a_shares_interval_is_wilsons(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    reference = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = share(hits, total).interval()
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= found.low <= hits / total <= found.high <= 1


def test_a_means_interval_is_the_limits() -> None:
    found = Measure(2.0, 100, 4.0).interval()
    assert (found.low, found.high) == pytest.approx((2 - 1.96 * 0.2, 2 + 1.96 * 0.2), abs=1e-3)
    # An error is never negative.
    assert Measure(0.1, 4, 4.0).interval().low == 0


def test_a_gap_has_newcombes_interval() -> None:
    # His example (a): 56 of 70 and 48 of 80, by the tenth method.
    found = widest_gap({"a": share(56, 70), "b": share(48, 80)})
    assert found is not None
    assert (found.best, found.worst, found.value) == ("a", "b", pytest.approx(0.2))
    assert (found.within.low, found.within.high) == (
        pytest.approx(0.0524, abs=5e-5),
        pytest.approx(0.3339, abs=5e-5),
    )
    assert found.is_certain


def test_of_means_the_lower_is_better_and_the_gap_is_that_of_the_normal_distribution() -> None:
    found = widest_gap({"a": Measure(5.0, 50, 4.0), "b": Measure(3.0, 100, 9.0)}, lower_is_better=True)
    assert found is not None
    assert (found.best, found.worst, found.value) == ("b", "a", 2.0)
    half = stats.norm.ppf(0.975) * math.sqrt(4 / 50 + 9 / 100)
    assert (found.within.low, found.within.high) == pytest.approx((2 - half, 2 + half))


@given(groups, st.booleans())
def test_a_gap_is_within_its_interval_and_no_pair_is_further_apart(
    measures: dict[str, Measure], lower_is_better: bool
) -> None:
    found = widest_gap(measures, lower_is_better=lower_is_better)
    assert found is not None
    values = [measure.value for measure in measures.values()]
    assert 0 <= found.value <= max(values) - min(values)
    assert found.within.low <= found.value <= found.within.high
    if not found.is_certain:
        assert found.value == max(values) - min(values)
    reordered = dict(reversed(measures.items()))
    assert widest_gap(reordered, lower_is_better=lower_is_better) == found


def test_a_certain_gap_goes_before_a_wider_one_that_may_be_chance() -> None:
    found = widest_gap({"few": share(24, 30), "many": share(9000, 10_000), "others": share(8700, 10_000)})
    assert found is not None
    assert (found.best, found.worst) == ("many", "others")


@pytest.mark.parametrize("measures", [{}, {"a": share(1, 2)}])
def test_there_is_no_gap_of_fewer_than_two(measures: dict[str, Measure]) -> None:
    assert widest_gap(measures) is None


@pytest.mark.parametrize(("number", "labels", "accuracy"), [(2, 30, 0.9), (10, 60, 0.9), (30, 200, 0.7)])
def test_groups_that_are_alike_are_seldom_told_apart(number: int, labels: int, accuracy: float) -> None:
    chance = random.Random(1)

    def alike() -> dict[str, Measure]:
        return {
            str(group): share(sum(chance.random() < accuracy for _ in range(labels)), labels)
            for group in range(number)
        }

    rounds = 300
    found = sum(gap.is_certain for _ in range(rounds) if (gap := widest_gap(alike())))
    # One in twenty, and three standard deviations.
    assert found / rounds < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)


def test_groups_that_differ_are_told_apart() -> None:
    chance = random.Random(1)
    rounds = 50
    found = 0
    for _ in range(rounds):
        measures = {
            str(group): share(sum(chance.random() < (0.7 if group == 3 else 0.9) for _ in range(300)), 300)
            for group in range(10)
        }
        gap = widest_gap(measures)
        found += gap is not None and gap.is_certain and gap.worst == "3"
    assert found == rounds
