from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.training.run import splits
from headrace.training.run.specification import Shares
from headrace.training.run.splits import InSplit, place

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


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text()), st.lists(st.text()))
def test_a_keys_split_depends_on_no_other_key(some: list[str], more: list[str]) -> None:
    assert assign(some, SHARES) == assign([*some, *more], SHARES)[: len(some)]


@settings(deadline=None)  # the first call compiles
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_training_share_takes_nobody_out_of_training(key: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    in_small = assign([key], Shares(train=small, validation=0, test=1 - small))[0] == 0
    in_large = assign([key], Shares(train=large, validation=0, test=1 - large))[0] == 0
    assert in_large or not in_small


@settings(deadline=None)  # the first call compiles
@given(st.text())
def test_shares_of_zero_get_nothing(key: str) -> None:
    assert assign([key], Shares(train=1, validation=0, test=0)) == [0]
    assert assign([key], Shares(train=0.6, validation=0.4, test=0))[0] in (0, 1)
    assert assign([key], Shares(train=0.6, validation=0, test=0.4))[0] in (0, 2)


def test_shares_are_met_nearly() -> None:
    counts = np.bincount(assign([f"key-{number}" for number in range(100_000)], SHARES), minlength=3)
    np.testing.assert_allclose(counts / 100_000, [0.7, 0.15, 0.15], atol=0.005)


def test_a_splits_rows_have_its_keys_and_a_label() -> None:
    keys = [f"key-{number}" for number in range(40)]
    labels = [None if number % 4 == 0 else number for number in range(40)]
    batch = pa.record_batch({"k": pa.array(keys), "y": pa.array(labels, pa.int8())})
    found = [InSplit(number, "k", "y", SHARES).mask(batch).tolist() for number in range(3)]
    expected = [
        [
            split == number and label is not None
            for split, label in zip(assign(keys, SHARES), labels, strict=True)
        ]
        for number in range(3)
    ]
    assert found == expected
