from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.deduplicate import Deduplicator
from headrace.ingestion.use_cases.ports import SampleTables, Span

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DATASET = Dataset("d", Schema("id", (), Field("y", FieldType.INT8)), Cut(), 1, NOW, NOW)
COLUMNS = pa.schema(
    [
        ("_event_source", pa.string()),
        ("_event_id", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
    ]
)
Name = tuple[str, int, int]


def rows_of(names: Sequence[Name]) -> pa.Table:
    """Rows by id, partition and offset."""
    columns = [["tests"] * len(names), *([name[part] for name in names] for part in range(3))]
    return pa.table(columns, schema=COLUMNS)


def names_of(rows: pa.Table) -> list[Name]:
    columns = [rows.column(name).to_pylist() for name in COLUMNS.names[1:]]
    return list(zip(*columns, strict=True))


@dataclass
class FakeTable:
    """What is stored, and how often that was asked for."""

    stored: list[Name] = field(default_factory=list)
    reads: int = 0

    def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> pa.Table:
        self.reads += 1
        wanted = [
            (name, partition, offset)
            for name, partition, offset in self.stored
            for span in spans
            if partition == span.source.partition and span.start <= offset < span.end
        ]
        return rows_of(wanted)


def spans_of(names: Sequence[Name]) -> list[Span]:
    by_partition: dict[int, list[int]] = {}
    for _, partition, offset in names:
        by_partition.setdefault(partition, []).append(offset)
    return [
        Span(SourcePartition("c", "t", partition), min(offsets), max(offsets) + 1)
        for partition, offsets in by_partition.items()
    ]


def deduplicator(table: FakeTable, reach: int) -> Deduplicator:
    return Deduplicator(cast("SampleTables", table), reach=reach)


Step = tuple[str, int, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.integers(0, 1), st.sampled_from(["more", "cut", "fail", "restart"])
    ),
    max_size=40,
)


def stored_by(steps: Sequence[Step], reach: int) -> list[Name]:
    """What is in the table at the end, with batches, failures and restarts as the steps say."""
    table = FakeTable()
    process = deduplicator(table, reach)
    batch: list[Name] = []
    offsets = [0, 0]
    for name, partition, then in [*steps, ("end", 0, "cut")]:
        batch.append((name, partition, offsets[partition]))
        offsets[partition] += 1
        if then == "more":
            continue
        if then == "fail":
            # The commit fails, and the batch comes again with more.
            process.fresh(DATASET, rows_of(batch), spans_of(batch))
            continue
        # Rows that were read one by one stand behind the others.
        shuffled = rows_of([*batch[1::2], *batch[::2]])
        fresh = process.fresh(DATASET, shuffled, spans_of(batch))
        table.stored += names_of(fresh.rows)
        assert fresh.repeated == len(batch) - fresh.rows.num_rows
        batch.clear()
        if then == "restart":
            process = deduplicator(table, reach)
        else:
            fresh.remember()
    return sorted(table.stored)


@given(steps=STEPS, reach=st.integers(1, 12))
def test_batches_failures_and_restarts_change_nothing(steps: list[Step], reach: int) -> None:
    assert stored_by(steps, reach) == stored_by([(name, at, "more") for name, at, _ in steps], reach)


def test_a_table_is_read_once_for_a_partition_until_others_may_have_written() -> None:
    table = FakeTable()
    process = deduplicator(table, 100)
    for offset in (10, 11, 12):
        process.fresh(DATASET, rows_of([("a", 0, offset)]), [Span(SourcePartition("c", "t", 0), offset, 13)])
    assert table.reads == 1
    process.forget()
    process.fresh(DATASET, rows_of([("a", 0, 13)]), [Span(SourcePartition("c", "t", 0), 13, 14)])
    assert table.reads == 2


def test_where_it_is_switched_off_nothing_is_read_and_nothing_left_out() -> None:
    table, twice = FakeTable(), [("a", 0, 5), ("a", 0, 6)]
    fresh = deduplicator(table, 0).fresh(DATASET, rows_of(twice), spans_of(twice))
    assert (names_of(fresh.rows), fresh.repeated, table.reads) == (twice, 0, 0)
