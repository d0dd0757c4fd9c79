"""Merging and removing files changes no row of any version, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake.exceptions import CommitFailedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.component.ingestion.test_delta_tables import (
    DATASET,
    LEFT,
    NAMES,
    NOW,
    RIGHT,
    SCHEMA,
    append_of,
    open_tables,
    stored_offsets,
)

from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.dataset import DatasetVersion, SourcePartition, Uncut, next_version
from headrace.ingestion.domain.schema import Field, FieldType
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.ingestion.use_cases.ports import Append, Span

MIN_FILES = 3
TARGET_BYTES = 1 << 20


def maintenance_of(
    root: Path, *, retention_hours: int = 0, after: timedelta = timedelta(0)
) -> DeltaMaintenance:
    return DeltaMaintenance(
        lambda name: (root / name).as_uri(),
        {},
        clock=lambda: datetime.now(UTC) + after,
        target_bytes=TARGET_BYTES,
        min_files=MIN_FILES,
        retention_hours=retention_hours,
    )


@dataclass
class World:
    """A table, what was appended to it, and the versions that were cut."""

    root: Path
    tables: DeltaTables = field(init=False)
    ends: dict[SourcePartition, int] = field(default_factory=lambda: {LEFT: 0, RIGHT: 0})
    versions: list[DatasetVersion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reopen()

    @property
    def table(self) -> str:
        return str(self.root / DATASET.name)

    @property
    def cut_at(self) -> list[int]:
        return [version.table_version for version in self.versions]

    def reopen(self) -> None:
        self.tables = open_tables(self.root)
        self.tables.ensure(DATASET)

    def append(self, source: SourcePartition = LEFT, count: int = 2) -> None:
        # Some of it again, as after a crash.
        start = self.ends[source]
        assert self.tables.append(append_of((source, range(max(0, start - 3), start + count)))) == count
        self.ends[source] = start + count

    def append_files(self, count: int) -> None:
        for _ in range(count):
            self.append()

    def cut(self) -> None:
        last = self.versions[-1] if self.versions else None
        since = last.table_version if last else -1
        state = self.tables.state_since(DATASET, since)
        uncut = Uncut(since).advance(state.commits, max(since, state.table_version))
        if uncut.rows:
            self.versions.append(next_version(DATASET, last, uncut, NOW))

    def merge(self) -> int:
        return maintenance_of(self.root).merge(DATASET).merged

    def remove_unneeded(self) -> int:
        return maintenance_of(self.root).remove_unneeded(DATASET, self.cut_at)

    def files(self) -> set[str]:
        return {path.name for path in Path(self.table).glob("*.parquet")}

    def check(self) -> None:
        """Every version and the table itself hold what they say."""
        for version in self.versions:
            rows = pa.table(deltalake.DeltaTable(self.table, version.table_version).to_pyarrow_table())
            assert (rows.num_rows, hash_rows(rows, NAMES)) == (version.row_count, version.content_hash)
        stored = [(source.partition, n) for source, end in self.ends.items() for n in range(end)]
        assert stored_offsets(self.root) == sorted(stored)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_merging_changes_the_files_and_nothing_else(world: World) -> None:
    world.append_files(6)
    world.cut()
    assert world.merge() == 6
    table = deltalake.DeltaTable(world.table)
    assert len(table.file_uris()) == 1
    assert table.count() == 12
    world.check()
    # Nothing was added: no version is due, and the one that there is stands where it stood.
    world.cut()
    assert len(world.versions) == 1
    # Offsets are still known, by a process that reads them from a checkpoint, too.
    table.create_checkpoint()
    world.reopen()
    world.append()
    world.cut()
    assert [version.row_count for version in world.versions] == [12, 14]
    world.check()


def test_a_merged_file_says_what_its_rows_lie_between_as_the_small_ones_did(world: World) -> None:
    world.append_files(4)
    world.append(RIGHT)
    world.merge()
    (merged,) = pa.table(deltalake.DeltaTable(world.table).get_add_actions(flatten=True)).to_pylist()
    names = ("num_records", "min._partition", "max._partition", "min._offset", "max._offset")
    assert [merged[name] for name in names] == [10, 0, 1, 0, 7]
    assert merged["min._event_time"] == merged["max._event_time"] == NOW
    assert merged["null_count._offset"] == 0
    pruned = deltalake.DeltaTable(world.table).to_pyarrow_dataset(file_pruning_predicate="_offset > 7")
    assert list(pruned.get_fragments()) == []


def test_a_merged_file_keeps_times_of_any_year(world: World) -> None:
    """A producer's zero time may be that of the year 1."""
    appended = append_of((LEFT, range(6)))
    column = appended.rows.schema.get_field_index("_event_time")
    for offset in range(6):
        time = datetime(1, 1, 1, tzinfo=UTC) if offset == 3 else NOW
        rows = appended.rows.slice(offset, 1).set_column(
            column, appended.rows.schema.field(column), pa.array([time], pa.timestamp("us", "UTC"))
        )
        world.tables.append(Append(DATASET, rows, [Span(LEFT, offset, offset + 1)]))
    assert world.merge() == 6
    rows = deltalake.DeltaTable(world.table).to_pyarrow_dataset()
    later = pc.field("_event_time") > datetime(2000, 1, 1, tzinfo=UTC)
    assert (rows.count_rows(later), rows.count_rows(~later)) == (5, 1)


def test_nothing_happens_to_few_files_or_twice(world: World) -> None:
    world.append_files(MIN_FILES - 1)
    assert world.merge() == 0
    world.append()
    assert world.merge() == MIN_FILES
    assert world.merge() == 0
    assert deltalake.DeltaTable(world.table).version() == MIN_FILES + 1


def test_files_from_before_a_column_was_added_are_merged_with_later_ones(world: World) -> None:
    world.append_files(2)
    wider = replace(
        DATASET,
        schema=replace(SCHEMA, features=(*SCHEMA.features, Field("b", FieldType.INT16, nullable=True))),
    )
    world.tables.ensure(wider)
    world.append_files(2)
    assert maintenance_of(world.root).merge(wider).merged == 4
    rows = pa.table(deltalake.DeltaTable(world.table).to_pyarrow_table())
    assert (rows.num_rows, rows.column("b").null_count) == (8, 8)
    world.check()


def test_what_a_version_needs_is_kept_and_the_rest_removed(world: World) -> None:
    world.append_files(4)
    world.cut()
    world.append_files(3)
    needed = world.files()
    world.merge()
    # Nobody can cut below a version that is after the merge.
    world.append()
    world.cut()
    world.merge()
    assert world.remove_unneeded() == 3
    assert len(needed & world.files()) == 4
    world.check()
    assert world.remove_unneeded() == 0


def test_what_may_still_be_cut_is_kept(world: World) -> None:
    """An instance read the table before the merge, and inserts its version after files were removed."""
    world.append_files(4)
    slow = World(world.root)
    slow.cut()
    world.merge()
    assert world.remove_unneeded() == 0
    world.versions = slow.versions
    world.check()


def test_readers_of_the_table_itself_keep_their_files_for_the_retention(world: World) -> None:
    world.append_files(4)
    reader = deltalake.DeltaTable(world.table)
    maintenance_of(world.root, after=timedelta(days=-1)).merge(DATASET)
    world.append()
    world.cut()
    two_hours = maintenance_of(world.root, retention_hours=2)
    assert two_hours.remove_unneeded(DATASET, world.cut_at) == 0
    assert reader.to_pyarrow_table().num_rows == 8
    # After that they are kept for nobody. How old a file is, the file system's clock says.
    later = maintenance_of(world.root, retention_hours=2, after=timedelta(hours=3))
    for file in Path(world.table).glob("*.parquet"):
        age(file)
    assert later.remove_unneeded(DATASET, world.cut_at) == 4
    world.check()


def test_what_a_dead_writer_left_is_removed_once_it_is_old(world: World) -> None:
    world.append_files(2)
    left = Path(world.table) / "part-00000-never-committed.snappy.parquet"
    left.write_bytes(b"half a fi")
    hourly = maintenance_of(world.root, retention_hours=1)
    assert hourly.remove_unneeded(DATASET, []) == 0
    age(left)
    assert hourly.remove_unneeded(DATASET, []) == 1
    assert not left.exists()
    world.check()


def age(file: Path) -> None:
    old = (datetime.now(UTC) - timedelta(days=1)).timestamp()
    os.utime(file, (old, old))


def test_of_two_that_merge_the_same_files_one_conflicts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that was paused after it chose its files wakes when its successor has merged them."""
    world.append_files(4)
    write = DeltaMaintenance._written

    def write_late(self: DeltaMaintenance, *arguments: object) -> object:
        monkeypatch.undo()
        assert world.merge() == 4
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaMaintenance, "_written", write_late)
    with pytest.raises(CommitFailedError):
        world.merge()
    world.check()


WIDER = replace(DATASET, schema=replace(SCHEMA, label=Field("y", FieldType.INT32)))


def test_a_merge_that_a_column_was_widened_during_conflicts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.append_files(4)
    write = DeltaMaintenance._written

    def write_late(self: DeltaMaintenance, *arguments: object) -> object:
        open_tables(world.root).ensure(WIDER)
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaMaintenance, "_written", write_late)
    with pytest.raises(CommitFailedError):
        world.merge()
    world.check()


def test_a_column_that_is_widened_during_a_merge_is_widened_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.append_files(4)
    write = deltalake.write_deltalake

    def write_late(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        assert world.merge() == 4
        write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.ingestion.storage.delta.deltalake.write_deltalake", write_late)
    open_tables(world.root).ensure(WIDER)
    world.check()
    assert deltalake.DeltaTable(world.table).schema().to_arrow().field("y").type == pa.int32()


def test_appends_during_a_merge_are_kept_and_do_not_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.append_files(4)
    write = DeltaMaintenance._written

    def write_slowly(self: DeltaMaintenance, *arguments: object) -> object:
        world.append(LEFT)
        world.cut()
        world.append(RIGHT)
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaMaintenance, "_written", write_slowly)
    assert world.merge() == 4
    world.check()
    assert len(deltalake.DeltaTable(world.table).file_uris()) == 3


def test_writers_and_maintenance_at_full_speed_lose_and_double_nothing(world: World) -> None:
    world.append_files(1)

    def write(partition: int) -> None:
        tables, source = open_tables(world.root), SourcePartition("c1", "t", partition)
        for start in range(0, 60, 2):
            assert tables.append(append_of((source, range(start, start + 2)))) == 2

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, partition) for partition in (1, 2)]
        merged = 0
        while not all(writer.done() for writer in writers):
            merged += maintenance_of(world.root, retention_hours=1).merge(DATASET).merged
        for writer in writers:
            writer.result()
    assert merged
    expected = [(0, n) for n in range(2)] + [(p, n) for p in (1, 2) for n in range(60)]
    assert stored_offsets(world.root) == sorted(expected)


steps = st.lists(
    st.sampled_from(["left", "right", "both", "cut", "merge", "remove", "reopen", "checkpoint"]),
    min_size=10,
    max_size=40,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_every_version_reads_its_rows_after_any_history(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    world = World(tmp_path_factory.mktemp("table"))
    actions = {
        "left": lambda: world.append(LEFT, 1),
        "right": lambda: world.append(RIGHT, 3),
        "both": lambda: (world.append(LEFT), world.append(RIGHT)),
        "cut": world.cut,
        "merge": world.merge,
        "remove": world.remove_unneeded,
        "reopen": world.reopen,
        "checkpoint": lambda: deltalake.DeltaTable(world.table).create_checkpoint(),
    }
    for step in script:
        actions[step]()
    world.check()


def maintain_in_a_process(
    world: World, target_bytes: int = TARGET_BYTES, output: int = subprocess.DEVNULL, **environment: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.component.ingestion.maintaining",
            str(world.root),
            json.dumps(world.cut_at),
            str(target_bytes),
        ],
        stdout=output,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[3],
    )


def test_a_merge_takes_memory_for_a_row_group_however_much_the_files_hold(world: World) -> None:
    rows, width = 200, 1 << 18
    for start in range(0, MIN_FILES * rows, rows):
        appended = append_of((LEFT, range(start, start + rows)))
        column = appended.rows.schema.get_field_index("id")
        ids = pa.array([f"{number:08}" * (width // 8) for number in range(start, start + rows)])
        wide = appended.rows.set_column(column, appended.rows.schema.field(column), ids)
        world.tables.append(replace(appended, rows=wide))
    merging = maintain_in_a_process(world, target_bytes=1 << 30, output=subprocess.PIPE)
    written, _ = merging.communicate()
    assert len(deltalake.DeltaTable(world.table).file_uris()) == 1
    assert stored_offsets(world.root) == [(0, n) for n in range(MIN_FILES * rows)]
    # 32 MiB of rows, and as much for what they are decoded from and encoded to.
    assert int(written) < 2 * rows * width < MIN_FILES * rows * width


@pytest.mark.kill
@pytest.mark.parametrize(
    "fault",
    [
        "ingestion.before-merge",
        "ingestion.after-merge-write",
        "ingestion.after-merge-commit",
        "ingestion.before-vacuum",
        "ingestion.after-vacuum",
    ],
)
def test_a_kill_during_maintenance_changes_no_row(world: World, fault: str) -> None:
    world.append_files(4)
    world.cut()
    world.append_files(4)
    world.merge()
    world.append_files(4)
    world.cut()
    doomed = maintain_in_a_process(world, HEADRACE_FAULT=fault)
    assert doomed.wait() == -signal.SIGKILL
    world.check()
    # Whoever is next goes on where it stood, what the dead one wrote and did not commit included.
    assert maintain_in_a_process(world).wait() == 0
    world.append()
    world.cut()
    world.remove_unneeded()
    world.check()
    unneeded = world.files() - needed_files(world)
    assert unneeded == set()


def needed_files(world: World) -> set[str]:
    versions = [*world.cut_at, deltalake.DeltaTable(world.table).version()]
    tables = (deltalake.DeltaTable(world.table, version) for version in versions)
    return {Path(uri).name for table in tables for uri in table.file_uris()}


@pytest.mark.kill
def test_a_removal_that_died_in_the_middle_is_ended_by_the_next(world: World) -> None:
    world.append_files(6)
    world.merge()
    world.append()
    world.cut()
    unneeded = sorted(world.files() - needed_files(world))
    assert len(unneeded) == 6
    for name in unneeded[::2]:
        (Path(world.table) / name).unlink()
    world.check()
    assert world.remove_unneeded() == 3
    assert world.files() == needed_files(world)
    world.check()


@pytest.mark.kill
def test_kills_at_any_moment_change_no_row(world: World) -> None:
    moments = random.Random(16)
    for _ in range(6):
        world.append_files(4)
        world.cut()
        doomed = maintain_in_a_process(world)
        try:
            doomed.wait(moments.uniform(0.5, 2.5))
        except subprocess.TimeoutExpired:
            doomed.kill()
            doomed.wait()
        world.check()
    assert maintain_in_a_process(world).wait() == 0
    world.check()
