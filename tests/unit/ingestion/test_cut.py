from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.cut import check_cut, due_time, is_due
from headrace.ingestion.domain.dataset import (
    Dataset,
    SourceOffset,
    SourcePartition,
    TableCommit,
    Uncut,
    next_version,
)
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema

START = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
LEFT, RIGHT = SourcePartition("c", "t", 0), SourcePartition("c", "t", 1)


def commit(version: int, rows: int, *sources: SourceOffset, traceparent: str = "") -> TableCommit:
    return TableCommit(version, rows, rows * 1000, sources, traceparent, START + timedelta(seconds=version))


@pytest.mark.parametrize(
    ("cut", "rows", "age", "due"),
    [
        (Cut(rows=10), 9, 1000, False),
        (Cut(rows=10), 10, 0, True),
        (Cut(rows=10), 11, 0, True),
        (Cut(seconds=30), 1, 29.9, False),
        (Cut(seconds=30), 1, 30, True),
        (Cut(seconds=30), 0, 1000, False),
        (Cut(rows=10, seconds=30), 3, 31, True),
        (Cut(), 10**9, 10**6, False),
    ],
)
def test_a_version_is_due_by_rows_or_by_age(cut: Cut, rows: int, age: float, due: bool) -> None:
    uncut = Uncut(3, rows, first_commit_time=START if rows else None)
    assert is_due(cut, uncut, START + timedelta(seconds=age)) is due


def test_the_due_time_counts_from_the_first_uncut_row() -> None:
    uncut = Uncut(0).advance([commit(1, 0), commit(2, 5), commit(3, 5)], 3)
    assert due_time(Cut(seconds=10), uncut, START) == START + timedelta(seconds=12)
    assert due_time(Cut(rows=1), uncut, START) is None


@pytest.mark.parametrize(
    ("cut", "first", "due"),
    [
        (
            Cut(schedule="0 2 * * *"),
            datetime(2026, 1, 1, 23, 59, tzinfo=UTC),
            datetime(2026, 1, 2, 2, tzinfo=UTC),
        ),
        (Cut(schedule="0 2 * * *"), datetime(2026, 1, 2, 2, tzinfo=UTC), datetime(2026, 1, 3, 2, tzinfo=UTC)),
        (
            Cut(schedule="30 6 * * mon"),
            datetime(2026, 1, 2, tzinfo=UTC),
            datetime(2026, 1, 5, 6, 30, tzinfo=UTC),
        ),
        (Cut(schedule="*/10 * * * * *"), START, START + timedelta(seconds=10)),
        # The earlier one of both.
        (Cut(schedule="0 2 * * *", seconds=60), START, START + timedelta(seconds=60)),
        (Cut(schedule="0 2 * * *", seconds=86_400), START, START + timedelta(hours=2)),
    ],
)
def test_by_schedule_a_version_is_due_at_the_first_moment_after_its_first_row(
    cut: Cut, first: datetime, due: datetime
) -> None:
    uncut = Uncut(3, 1, first_commit_time=first)
    assert due_time(cut, uncut, first) == due
    assert not is_due(cut, uncut, due - timedelta(seconds=1))
    assert is_due(cut, uncut, due)
    # However late somebody looks.
    assert is_due(cut, uncut, due + timedelta(days=40))
    assert not is_due(cut, Uncut(3), due + timedelta(days=40))


@pytest.mark.parametrize("schedule", ["nightly", "0 25 * * *", "0 2 * * * * *", "0 2 30 2 *"])
def test_a_schedule_that_makes_no_sense_is_refused(schedule: str) -> None:
    check_cut(Cut(schedule="0 2 * * *"))
    with pytest.raises(InvalidArgument, match="must be a cron expression") as caught:
        check_cut(Cut(schedule=schedule))
    assert caught.value.reason == "INVALID_CUT"
    assert [violation.field for violation in caught.value.fields] == ["cut.schedule"]


def test_rows_from_a_time_to_come_are_due_where_the_clock_was_set_back() -> None:
    uncut = Uncut(3, 1, first_commit_time=START)
    assert not is_due(Cut(seconds=10), uncut, START - timedelta(seconds=59))
    assert is_due(Cut(seconds=10), uncut, START - timedelta(seconds=61))
    assert is_due(Cut(seconds=10), uncut, START - timedelta(days=400))
    assert not is_due(Cut(rows=10), uncut, START - timedelta(days=400))


def test_commits_add_up_and_the_first_sample_gives_the_trace() -> None:
    uncut = Uncut(0).advance([commit(1, 2, SourceOffset(LEFT, 5))], 1)
    uncut = uncut.advance(
        [
            commit(2, 3, SourceOffset(RIGHT, 9), SourceOffset(LEFT, 7), traceparent="first"),
            commit(3, 1, traceparent="x"),
        ],
        4,
    )
    assert (uncut.table_version, uncut.rows, uncut.content_hash) == (4, 6, 6000)
    assert uncut.sources == (SourceOffset(LEFT, 7), SourceOffset(RIGHT, 9))
    assert uncut.traceparent == "first"


def test_a_version_holds_all_that_came_before_it() -> None:
    dataset = Dataset("d", SCHEMA, Cut(), 2, START, START)
    first = next_version(dataset, None, Uncut(3, 5, 7, (SourceOffset(LEFT, 5),), "trace"), START)
    assert (first.version, first.row_count, first.content_hash, first.traceparent) == (1, 5, 7, "trace")
    second = next_version(dataset, first, Uncut(8, 2, 2**256 - 1, (SourceOffset(RIGHT, 4),)), START)
    assert (second.version, second.table_version, second.row_count, second.content_hash) == (2, 8, 7, 6)
    assert second.sources == (SourceOffset(LEFT, 5), SourceOffset(RIGHT, 4))
    assert second.schema_version == 2
