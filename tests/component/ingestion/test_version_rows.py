from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.version_rows import DeltaVersionRows
from headrace.ingestion.use_cases.ports import Append, Span

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
DATASET = Dataset("samples", SCHEMA, Cut(), 1, NOW, NOW)
WIDER = replace(
    DATASET,
    schema=replace(SCHEMA, features=(*SCHEMA.features, Field("b", FieldType.INT16, nullable=True))),
    schema_version=2,
)


class Table:
    """A dataset's table, and what reads its versions."""

    def __init__(self, root: Path) -> None:
        self.path = root / "samples"
        uri_of = lambda name: (root / name).as_uri()  # noqa: E731
        self.tables = DeltaTables(uri_of, {})
        self.rows = DeltaVersionRows(uri_of, {})

    def append(self, offsets: range, dataset: Dataset = DATASET) -> int:
        """Store rows, in each the feature `a` is the offset; return the table's version."""
        values = [
            {"id": str(n), "a": n, "y": n % 2, "_cluster": "c", "_topic": "t", "_partition": 0, "_offset": n}
            for n in offsets
        ]
        schema = pa.unify_schemas([stored_schema(dataset.schema), SOURCE_COLUMNS])
        span = Span(SourcePartition("c", "t", 0), offsets.start, offsets.stop)
        self.tables.append(Append(dataset, pa.Table.from_pylist(values, schema=schema), [span]))
        return self.tables.state_since(dataset, -1).table_version

    def delta(self) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(str(self.path))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def values(batches: Iterable[pa.RecordBatch], column: str = "a") -> list[float]:
    return sorted(value for batch in batches for value in batch.column(column).to_pylist())


def test_the_rows_of_some_commits_are_read_and_no_others(table: Table) -> None:
    first, second = table.append(range(3)), table.append(range(3, 5))
    third = table.append(range(5, 9))
    assert values(table.rows.added(DATASET, -1, first)) == [0, 1, 2]
    assert values(table.rows.added(DATASET, first, third)) == [3, 4, 5, 6, 7, 8]
    assert values(table.rows.added(DATASET, second, second)) == []
    (batch,) = table.rows.added(DATASET, first, second)
    assert batch.schema.names == ["id", "a", "y"]


def test_compaction_adds_no_row(table: Table) -> None:
    first = table.append(range(3))
    last = table.append(range(3, 5))
    table.delta().optimize.compact()
    compacted = table.delta().version()
    assert compacted > last
    assert values(table.rows.added(DATASET, first, compacted)) == [3, 4]
    assert values(table.rows.at("samples", compacted, ["a"])) == [0, 1, 2, 3, 4]
    # The files that it replaced are gone: whoever asks reads the whole version.
    table.delta().vacuum(0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(FileNotFoundError):
        values(table.rows.added(DATASET, first, compacted))
    with pytest.raises(FileNotFoundError):
        values(table.rows.at("samples", last, ["a"]))


def test_a_version_is_read_by_the_columns_that_it_had(table: Table) -> None:
    old = table.append(range(3))
    new = table.append(range(3, 5), WIDER)
    (batch,) = table.rows.at("samples", old, ["id", "a", "b"])
    assert batch.schema.names == ["id", "a"]
    assert pa.Table.from_batches(table.rows.at("samples", new, ["b"])).column("b").null_count == 5
    # Asked with the schema of later, files of earlier have the columns that they have.
    (older,) = table.rows.added(WIDER, -1, old)
    assert older.schema.names == ["id", "a", "y"]


def test_rows_are_read_by_where_they_came_from(table: Table) -> None:
    version = table.append(range(9))
    where = (pc.field("_topic") == "t") & (pc.field("_offset") > 6)
    assert values(table.rows.at("samples", version, ["_offset"], where), "_offset") == [7, 8]
