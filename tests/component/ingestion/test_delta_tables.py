from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import Aborted, FailedPrecondition
from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.content_hash import combine, hash_rows
from headrace.ingestion.domain.dataset import Dataset, SourceOffset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.storage import delta
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.use_cases.ports import Append, Span

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
DATASET = Dataset("samples", SCHEMA, Cut(), 1, NOW, NOW)
NAMES = ("id", "a", "y")
LEFT, RIGHT = SourcePartition("c1", "t", 0), SourcePartition("c1", "t", 1)


def rows_of(source: SourcePartition, offsets: Sequence[int], schema: Schema = SCHEMA) -> pa.Table:
    values = [
        {
            "id": f"{source.partition}-{offset}",
            "a": offset / 2,
            "y": offset % 2,
            "_event_id": f"e{offset}",
            "_event_source": "tests",
            "_event_time": NOW,
            "_cluster": source.cluster,
            "_topic": source.topic,
            "_partition": source.partition,
            "_offset": offset,
            "_traceparent": f"trace-{offset}" if offset else None,
        }
        for offset in offsets
    ]
    return pa.Table.from_pylist(values, schema=pa.unify_schemas([stored_schema(schema), SOURCE_COLUMNS]))


def append_of(*parts: tuple[SourcePartition, range], dataset: Dataset = DATASET) -> Append:
    rows = pa.concat_tables([rows_of(source, offsets, dataset.schema) for source, offsets in parts])
    return Append(dataset, rows, [Span(source, offsets.start, offsets.stop) for source, offsets in parts])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def open_tables(root: Path) -> DeltaTables:
    return DeltaTables(lambda name: (root / name).as_uri(), {})


def stored_offsets(root: Path) -> list[tuple[int, int]]:
    table = pa.table(deltalake.DeltaTable(str(root / "samples")).to_pyarrow_table())
    pairs = zip(table.column("_partition").to_pylist(), table.column("_offset").to_pylist(), strict=True)
    return sorted(pairs)


def test_rows_are_stored_once_whatever_is_appended_again(root: Path) -> None:
    assert open_tables(root).append(append_of((LEFT, range(10)))) == 10
    # Another process, another batch size, the same events and some new ones.
    tables = open_tables(root)
    assert tables.append(append_of((LEFT, range(5)))) == 0
    assert tables.append(append_of((LEFT, range(5, 15)), (RIGHT, range(3)))) == 8
    assert tables.append(append_of((RIGHT, range(3)), (LEFT, range(15)))) == 0
    assert stored_offsets(root) == [(0, n) for n in range(15)] + [(1, n) for n in range(3)]


def test_the_same_offsets_of_another_cluster_are_other_events(root: Path) -> None:
    tables = open_tables(root)
    tables.append(append_of((LEFT, range(3))))
    assert tables.append(append_of((replace(LEFT, cluster="c2"), range(3)))) == 3


def test_stored_events_are_found_by_where_they_came_from(root: Path) -> None:
    tables = open_tables(root)
    tables.append(append_of((LEFT, range(10)), (RIGHT, range(10))))
    tables.append(append_of((replace(LEFT, cluster="c2"), range(5))))
    tables.append(append_of((LEFT, range(10, 20))))
    events = tables.stored_events(DATASET, [Span(LEFT, 8, 12), Span(RIGHT, 0, 1)])
    assert events.column_names == ["_event_source", "_event_id", "_partition", "_offset"]
    assert sorted(events.to_pylist(), key=lambda row: (row["_partition"], row["_offset"])) == [
        {"_event_source": "tests", "_event_id": f"e{offset}", "_partition": partition, "_offset": offset}
        for partition, offset in [(0, 8), (0, 9), (0, 10), (0, 11), (1, 0)]
    ]


def test_rows_of_a_table_that_knew_no_sources_are_no_stored_events(root: Path) -> None:
    """A table from before events were de-duplicated gets the columns, and goes on."""
    tables = open_tables(root)
    old = append_of((LEFT, range(3)))
    names = [name for name in old.rows.column_names if name not in ("_event_source", "_cluster")]
    deltalake.write_deltalake(str(root / "samples"), old.rows.select(names))
    assert tables.stored_events(DATASET, [Span(LEFT, 0, 3)]).num_rows == 0
    assert tables.append(append_of((LEFT, range(3, 5)))) == 2
    assert tables.stored_events(DATASET, [Span(LEFT, 0, 5)]).num_rows == 2


def test_files_are_looked_up_by_offset_in_tables_of_many_columns(root: Path) -> None:
    features = tuple(Field(f"f{number}", FieldType.FLOAT32, nullable=True) for number in range(40))
    dataset = replace(DATASET, schema=replace(SCHEMA, features=(*SCHEMA.features, *features)))
    tables = open_tables(root)
    for start in range(0, 30, 10):
        rows = rows_of(LEFT, range(start, start + 10), dataset.schema)
        tables.append(Append(dataset, rows, [Span(LEFT, start, start + 10)]))
    table = deltalake.DeltaTable(str(root / "samples"))
    found = table.to_pyarrow_dataset(file_pruning_predicate="_partition = 0 AND _offset >= 20")
    assert len(list(found.get_fragments())) == 1


def test_commits_say_what_they_added(root: Path) -> None:
    tables = open_tables(root)
    tables.ensure(DATASET)
    first, second = append_of((LEFT, range(4))), append_of((LEFT, range(4, 6)), (RIGHT, range(7, 9)))
    tables.append(first)
    tables.append(second)
    state = tables.state_since(DATASET, -1)
    filled = [commit for commit in state.commits if commit.rows]
    assert state.table_version == 2
    assert [(commit.table_version, commit.rows, commit.traceparent) for commit in filled] == [
        (1, 4, "trace-1"),
        (2, 4, "trace-4"),
    ]
    assert filled[1].sources == (SourceOffset(LEFT, 6), SourceOffset(RIGHT, 9))
    whole = pa.concat_tables([first.rows, second.rows])
    assert combine(*(commit.content_hash for commit in filled)) == hash_rows(whole, NAMES)
    assert [commit.table_version for commit in tables.state_since(DATASET, 1).commits] == [2]
    assert tables.state_since(DATASET, 2).commits == []


def test_commits_keep_their_versions_where_others_commit_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, others = open_tables(root), open_tables(root)
    for count in (1, 2, 3):
        tables.append(append_of((LEFT, range(10 * count, 11 * count))))
    version = deltalake.DeltaTable.version
    overtaken = threading.Event()

    def version_until_others_commit(table: deltalake.DeltaTable) -> int:
        newest: int = version(table)
        if not overtaken.is_set():
            overtaken.set()
            others.append(append_of((RIGHT, range(9))))
        return newest

    monkeypatch.setattr(deltalake.DeltaTable, "version", version_until_others_commit)
    first = tables.state_since(DATASET, 0)
    later = tables.state_since(DATASET, first.table_version)
    assert [(commit.table_version, commit.rows) for commit in [*first.commits, *later.commits]] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 9),
    ]


def test_what_was_committed_after_a_moment_is_found_however_much_it_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "_COMMITS_AT_ONCE", 2)
    tables = open_tables(root)
    for number in range(12):
        tables.append(append_of((LEFT, range(number, number + 1))))
    commits = tables.state_since(DATASET, -1).commits
    for index, commit in enumerate(commits):
        found = tables.state_after(DATASET, commit.commit_time)
        assert found.table_version == 12
        # Two commits may fall on one millisecond.
        assert found.commits == [
            later for later in commits[index + 1 :] if later.commit_time > commit.commit_time
        ]
    assert tables.state_after(DATASET, NOW).commits == commits


def test_a_writer_that_slept_through_anothers_commit_adds_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked at the table, one committed, and the other one wakes with its rows in hand."""
    sleeper, successor = open_tables(root), open_tables(root)
    sleeper.ensure(DATASET)
    write = deltalake.write_deltalake
    overtaken = threading.Event()

    def write_late(table: deltalake.DeltaTable, *args: object, **options: object) -> None:
        if not overtaken.is_set():
            overtaken.set()
            assert successor.append(append_of((LEFT, range(8)))) == 8
        write(table, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    assert sleeper.append(append_of((LEFT, range(10)))) == 2
    assert stored_offsets(root) == [(0, n) for n in range(10)]


def test_writers_of_different_partitions_do_not_lose_each_others_rows(root: Path) -> None:
    open_tables(root).ensure(DATASET)

    def write(partition: int) -> int:
        tables, source = open_tables(root), SourcePartition("c1", "t", partition)
        return sum(tables.append(append_of((source, range(n, n + 5)))) for n in range(0, 50, 5))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [50] * 4
    assert stored_offsets(root) == [(p, n) for p in range(4) for n in range(50)]


def test_an_added_column_is_null_in_older_rows_and_for_older_writers(root: Path) -> None:
    old_writer = open_tables(root)
    old_writer.append(append_of((LEFT, range(2))))
    wider = replace(
        DATASET,
        schema=replace(SCHEMA, features=(*SCHEMA.features, Field("b", FieldType.INT16, nullable=True))),
        schema_version=2,
    )
    open_tables(root).ensure(wider)
    assert old_writer.append(append_of((LEFT, range(2, 4)))) == 2
    assert old_writer.append(append_of((LEFT, range(4, 6)), dataset=wider)) == 2
    table = deltalake.DeltaTable(str(root / "samples")).to_pyarrow_table()
    assert table.column("b").null_count == 6
    assert table.schema.field("b").type == pa.int16()


def test_a_column_that_a_declared_version_left_out_stays_for_older_writers(root: Path) -> None:
    old_writer, new_writer = open_tables(root), open_tables(root)
    old_writer.append(append_of((LEFT, range(2))))
    declared = replace(
        DATASET,
        schema=replace(SCHEMA, features=(Field("b", FieldType.STRING, default="-"),)),
        schema_version=2,
    )
    new_writer.ensure(declared)
    rows = rows_of(LEFT, range(2, 4)).drop_columns(["a"]).append_column("b", pa.array(["x", "y"]))
    spans = [Span(LEFT, 2, 4)]
    assert new_writer.append(Append(declared, rows, spans)) == 2
    # It was paused, and has not heard of the new version.
    assert old_writer.append(append_of((LEFT, range(6)))) == 2
    table = pa.table(deltalake.DeltaTable(str(root / "samples")).to_pyarrow_table()).sort_by("_offset")
    assert table.column("a").to_pylist() == [0.0, 0.5, None, None, 2.0, 2.5]
    assert table.column("b").to_pylist() == [None, None, "x", "y", None, None]
    hashes = [commit.content_hash for commit in new_writer.state_since(declared, -1).commits]
    assert combine(*hashes) == hash_rows(table, ["id", "a", "b", "y"])


DECLARED = replace(DATASET, schema=replace(SCHEMA, features=()), schema_version=2, declared_version=2)


def test_whoever_has_not_heard_of_a_declared_version_adds_no_rows_any_more(root: Path) -> None:
    sleeper, successor = open_tables(root), open_tables(root)
    sleeper.append(append_of((LEFT, range(4))))
    assert successor.accounted(DECLARED, [Span(LEFT, 0, 8), Span(RIGHT, 0, 8)]) == {LEFT: 4}
    with pytest.raises(Aborted) as caught:
        sleeper.append(append_of((LEFT, range(8))))
    assert caught.value.reason == "SCHEMA_REPLACED"
    # What is there already is there.
    assert sleeper.append(append_of((LEFT, range(4)))) == 0
    # A wider type rewrites the table, and does not open it again.
    wide = replace(
        DECLARED,
        schema=replace(DECLARED.schema, label=replace(SCHEMA.label, type=FieldType.INT64)),
        schema_version=3,
    )
    successor.ensure(wide)
    with pytest.raises(Aborted):
        open_tables(root).append(append_of((RIGHT, range(8))))
    assert stored_offsets(root) == [(0, n) for n in range(4)]


def test_an_append_that_a_declared_version_overtakes_conflicts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper, successor = open_tables(root), open_tables(root)
    sleeper.append(append_of((LEFT, range(2))))
    write = deltalake.write_deltalake
    overtaken = threading.Event()

    def write_late(table: deltalake.DeltaTable, *args: object, **options: object) -> None:
        if not overtaken.is_set():
            overtaken.set()
            assert successor.accounted(DECLARED, [Span(LEFT, 0, 8)]) == {LEFT: 2}
        write(table, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    with pytest.raises(Aborted) as caught:
        sleeper.append(append_of((LEFT, range(8))))
    assert caught.value.reason == "SCHEMA_REPLACED"
    assert stored_offsets(root) == [(0, n) for n in range(2)]


def widened(field_type: FieldType, features: FieldType = FieldType.FLOAT32) -> Dataset:
    schema = Schema("id", (Field("a", features),), Field("y", field_type))
    return replace(DATASET, schema=schema, schema_version=2)


def column_types(root: Path, version: int | None = None) -> list[pa.DataType]:
    table = deltalake.DeltaTable(str(root / "samples"), version=version)
    schema = pa.table(table.to_pyarrow_table()).schema
    return [schema.field(name).type for name in ("a", "y")]


def test_a_wider_type_takes_in_what_is_stored_and_earlier_versions_keep_theirs(root: Path) -> None:
    tables = open_tables(root)
    tables.append(append_of((LEFT, range(10))))
    before = tables.state_since(DATASET, -1)
    wide = widened(FieldType.INT64, FieldType.FLOAT64)
    tables.ensure(wide)
    after = tables.state_since(DATASET, -1)
    assert column_types(root) == [pa.float64(), pa.int64()]
    assert column_types(root, before.table_version) == [pa.float32(), pa.int8()]
    assert stored_offsets(root) == [(0, n) for n in range(10)]
    # Rewriting adds nothing to what versions are cut from, and offsets and properties stay.
    assert [commit.rows for commit in after.commits if commit.rows] == [10]
    assert tables.append(append_of((LEFT, range(12)), dataset=wide)) == 2
    table = deltalake.DeltaTable(str(root / "samples"))
    assert table.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    assert table.metadata().name == "samples"
    rows = pa.table(table.to_pyarrow_table())
    assert hash_rows(rows, NAMES) == hash_rows(rows_of(LEFT, range(12)), NAMES)


def test_an_empty_table_is_widened_too(root: Path) -> None:
    tables = open_tables(root)
    tables.ensure(DATASET)
    tables.ensure(widened(FieldType.INT16))
    assert column_types(root) == [pa.float32(), pa.int16()]


def test_writers_of_an_older_and_of_a_newer_schema_share_a_table(root: Path) -> None:
    """The process died after it had declared the wider type: the next writer brings the table up to it."""
    old, new = open_tables(root), open_tables(root)
    old.append(append_of((LEFT, range(2))))
    assert new.append(append_of((RIGHT, range(2)), dataset=widened(FieldType.INT32))) == 2
    assert old.append(append_of((LEFT, range(4)))) == 2
    assert column_types(root) == [pa.float32(), pa.int32()]
    assert stored_offsets(root) == [(0, n) for n in range(4)] + [(1, n) for n in range(2)]


def test_rows_that_come_while_a_table_is_rewritten_are_rewritten_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widening, other = open_tables(root), open_tables(root)
    other.append(append_of((LEFT, range(3))))
    write = deltalake.write_deltalake
    overtaken = threading.Event()

    def write_late(table: deltalake.DeltaTable, *args: object, **options: object) -> None:
        if not overtaken.is_set():
            overtaken.set()
            assert other.append(append_of((LEFT, range(5)))) == 2
        write(table, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    widening.ensure(widened(FieldType.INT64))
    assert stored_offsets(root) == [(0, n) for n in range(5)]
    files = [pq.read_schema(path) for path in deltalake.DeltaTable(str(root / "samples")).file_uris()]
    assert {schema.field("y").type for schema in files} == {pa.int64()}


def test_a_table_is_widened_however_fast_others_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widening, other = open_tables(root), open_tables(root)
    other.append(append_of((LEFT, range(1))))
    write = deltalake.write_deltalake
    overwrites: list[int] = []

    def write_late(table: deltalake.DeltaTable, *args: object, **options: object) -> None:
        if options["mode"] == "overwrite":
            overwrites.append(table.version())
            assert other.append(append_of((LEFT, range(len(overwrites) + 1)))) == 1
        write(table, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    widening.ensure(widened(FieldType.INT64))
    assert len(overwrites) == 3
    assert stored_offsets(root) == [(0, n) for n in range(4)]
    table = pa.table(deltalake.DeltaTable(str(root / "samples")).to_pyarrow_table())
    assert table.schema.field("y").type == pa.int64()
    assert sorted(table.column("y").to_pylist()) == [0, 0, 1, 1]


def test_what_another_writer_widened_is_not_widened_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widening, other = open_tables(root), open_tables(root)
    other.append(append_of((LEFT, range(3))))
    write = deltalake.write_deltalake
    overtaken = threading.Event()

    def write_late(table: deltalake.DeltaTable, *args: object, **options: object) -> None:
        if not overtaken.is_set():
            overtaken.set()
            other.ensure(widened(FieldType.INT64))
        write(table, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    widening.ensure(widened(FieldType.INT64))
    # Created, appended to, and widened once.
    assert deltalake.DeltaTable(str(root / "samples")).version() == 2
    assert stored_offsets(root) == [(0, n) for n in range(3)]


def test_a_table_of_other_types_at_the_address_is_refused(root: Path) -> None:
    other = replace(DATASET, schema=replace(SCHEMA, features=(Field("a", FieldType.STRING),)))
    open_tables(root).ensure(other)
    with pytest.raises(FailedPrecondition) as caught:
        open_tables(root).ensure(DATASET)
    assert caught.value.reason == "TABLE_MISMATCH"
