from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace import splits
from headrace.splits import NEVER, ByTime, Shares, begins_of, microseconds, place

SHARES = Shares(train=0.7, validation=0.15, test=0.15)
GOLDEN = {"patient-1": 0.4485146818919713, "": 0.8931675160897388, "Ünïcode ✓": 0.530574701649926}


def assign(keys: list[str], shares: Shares) -> list[int]:
    """Each key's split, which is the same whether keys are hashed one by one or together."""
    column = pa.array(keys, pa.string())
    together = splits.assign(column, shares, few=0).tolist()
    assert splits.assign(column, shares).tolist() == together
    return together


def test_places_never_change() -> None:
    """Golden values: were they to change, samples would move between splits from one version to the next."""
    assert place("patient-1") == GOLDEN["patient-1"]
    assert place("") == GOLDEN[""]
    assert place("Ünïcode ✓") == GOLDEN["Ünïcode ✓"]


@given(st.lists(st.text()), st.lists(st.text()))
def test_a_keys_split_depends_on_no_other_key(some: list[str], more: list[str]) -> None:
    assert assign(some, SHARES) == assign([*some, *more], SHARES)[: len(some)]


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_training_share_takes_nobody_out_of_training(key: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    in_small = assign([key], Shares(train=small, validation=0, test=1 - small))[0] == 0
    in_large = assign([key], Shares(train=large, validation=0, test=1 - large))[0] == 0
    assert in_large or not in_small


@given(st.text())
def test_shares_of_zero_get_nothing(key: str) -> None:
    assert assign([key], Shares(train=1, validation=0, test=0)) == [0]
    assert assign([key], Shares(train=0.6, validation=0.4, test=0))[0] in (0, 1)
    assert assign([key], Shares(train=0.6, validation=0, test=0.4))[0] in (0, 2)


def test_shares_are_met_nearly() -> None:
    counts = np.bincount(assign([f"key-{number}" for number in range(100_000)], SHARES), minlength=3)
    np.testing.assert_allclose(counts / 100_000, [0.7, 0.15, 0.15], atol=0.005)


def times_of(*chunks: list[int]) -> Callable[[], Iterator[NDArray[np.int64]]]:
    return lambda: (np.array(chunk, np.int64) for chunk in chunks)


@given(
    st.lists(st.lists(st.integers(-(10**17), 10**17) | st.integers(0, 5)), max_size=4),
    st.integers(1, 100),
    st.integers(0, 100),
)
def test_by_time_splits_begin_where_sorting_says(chunks: list[list[int]], train: int, both: int) -> None:
    both = max(train, both)
    shares = Shares(train / 100, (both - train) / 100, (100 - both) / 100, "time")
    ordered = [*sorted(time for chunk in chunks for time in chunk), NEVER]
    ranks = [min(round(end * (len(ordered) - 1)), len(ordered) - 1) for end in (train / 100, both / 100)]
    assert begins_of(times_of(*chunks), shares) == tuple(ordered[rank] for rank in ranks)


def test_by_time_the_earliest_train_and_rows_of_a_moment_stay_together() -> None:
    shares = Shares(0.5, 0.25, 0.25, "time")
    begins = begins_of(times_of([60, 10, 20, 20], [20, 30, 50, 40]), shares)
    assert begins == (30, 50)
    times = pa.array([10, 20, 29, 30, 49, 50, 60, None], pa.timestamp("us", "UTC")).drop_null()
    assert ByTime(begins).assign(times).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert begins_of(times_of([7] * 9), shares) == (7, 7)
    assert begins_of(times_of(), shares) == (NEVER, NEVER)


def test_by_time_a_share_of_zero_gets_nothing() -> None:
    assert begins_of(times_of([1, 2, 3, 4]), Shares(1, 0, 0, "time")) == (NEVER, NEVER)
    assert begins_of(times_of([1, 2, 3, 4]), Shares(0.5, 0.5, 0, "time")) == (3, NEVER)
    assert begins_of(times_of([1, 2, 3, 4]), Shares(0.5, 0, 0.5, "time")) == (3, 3)


def test_by_time_only_moments_count_not_their_unit() -> None:
    moments = pa.array([1, 2, 3], pa.timestamp("s", "UTC"))
    assert microseconds(moments).tolist() == [1_000_000, 2_000_000, 3_000_000]
