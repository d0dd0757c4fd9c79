from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.schema import Field, FieldType
from headrace.ingestion.domain.split_counts import (
    SplitCount,
    SplitCounter,
    SplitCounts,
    check_split,
    is_countable_on,
    moment_of,
)
from headrace.ingestion.split_translation import split_counts_from_message, split_counts_to_message
from headrace.splits import NEVER, TIME_COLUMN, ByTime, Shares

LABEL = Field("y", FieldType.INT8, nullable=True, allowed_values=(0, 1))
SHARES = Shares(0.5, 0.25, 0.25, "time")


def batch_of(*rows: tuple[int, int | None]) -> pa.RecordBatch:
    times, labels = zip(*rows, strict=True)
    return pa.record_batch(
        {TIME_COLUMN: pa.array(times, pa.timestamp("us", "UTC")), "y": pa.array(labels, pa.int8())}
    )


def test_rows_are_counted_by_split_and_class_on_top_of_those_before() -> None:
    splitter = ByTime((10, 20))
    counter = SplitCounter(LABEL, splitter)
    first, second = batch_of((1, 0), (2, 1), (3, None), (10, 1)), batch_of((19, 1), (20, 0))
    assert list(counter.through([first, second])) == [first, second]
    counts = counter.counts(SHARES, moment_of(10), moment_of(20))
    assert counts.splits == (
        SplitCount(3, 1, (("0", 1), ("1", 1))),
        SplitCount(2, 0, (("0", 0), ("1", 2))),
        SplitCount(1, 0, (("0", 1), ("1", 0))),
    )
    wider = replace(LABEL, allowed_values=(0, 1, 2))
    more = SplitCounter(wider, splitter, counts)
    more.add(batch_of((1, 2), (30, 1)))
    assert [count.classes for count in more.counts(SHARES).splits] == [
        (("0", 1), ("1", 1), ("2", 1)),
        (("0", 0), ("1", 2), ("2", 0)),
        (("0", 1), ("1", 1), ("2", 0)),
    ]


def test_any_label_is_counted_without_classes() -> None:
    counter = SplitCounter(replace(LABEL, allowed_values=()), ByTime((10, 20)))
    counter.add(batch_of((1, 7), (25, 9)))
    assert counter.counts(SHARES).splits == (SplitCount(1, 0), SplitCount(0, 0), SplitCount(1, 0))


def test_counts_by_key_go_on_where_the_rule_is_the_same() -> None:
    by_key = Shares(0.5, 0.25, 0.25)
    counts = SplitCounts(by_key, ())
    assert is_countable_on(counts, by_key)
    assert not is_countable_on(counts, Shares(0.6, 0.2, 0.2))
    assert not is_countable_on(None, by_key)
    assert is_countable_on(None, None)
    assert is_countable_on(None, SHARES)


def test_counts_survive_their_message() -> None:
    counts = SplitCounts(
        SHARES,
        (SplitCount(3, 1, (("0", 1), ("1", 1))), SplitCount(0, 0, ()), SplitCount(9, 0, ())),
        datetime(2026, 1, 2, tzinfo=UTC),
        None,
    )
    assert split_counts_from_message(split_counts_to_message(counts)) == counts
    assert moment_of(NEVER) is None


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.2), (float("nan"), 0.5, 0.5)])
def test_shares_must_sum_to_one(shares: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_split(Shares(*shares))
    assert refused.value.reason == "INVALID_SPLIT"
    assert [violation.field for violation in refused.value.fields] == ["split"]
    check_split(Shares(0.7, 0.15, 0.15))
