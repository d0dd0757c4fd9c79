from __future__ import annotations

import pyarrow as pa

from headrace.splits import ByKey, Shares, assign
from headrace.training.run.data import InSplit

SHARES = Shares(train=0.7, validation=0.15, test=0.15)


def test_a_splits_rows_have_its_keys_and_a_label() -> None:
    keys = pa.array([f"key-{number}" for number in range(40)])
    labels = [None if number % 4 == 0 else number for number in range(40)]
    batch = pa.record_batch({"k": keys, "y": pa.array(labels, pa.int8())})
    found = [InSplit(number, ByKey("k", SHARES), "y").mask(batch).tolist() for number in range(3)]
    expected = [
        [
            split == number and label is not None
            for split, label in zip(assign(keys, SHARES).tolist(), labels, strict=True)
        ]
        for number in range(3)
    ]
    assert found == expected
