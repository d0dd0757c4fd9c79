"""Old rows leave a table, and nothing else changes: no version, no sum, no event that is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError
from tests.component.ingestion.test_delta_tables import DATASET, LEFT, NAMES, NOW, append_of, open_tables
from tests.component.ingestion.test_maintenance import maintenance_of

from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.dataset import DatasetVersion, Uncut, next_version
from headrace.ingestion.storage.expiry import DeltaExpiry
from headrace.ingestion.use_cases.ports import Append, ExpiredRows, Span

DAY = timedelta(days=1)


def expiry_of(root: Path, *, commit_bytes: int = 1 << 30) -> DeltaExpiry:
    return DeltaExpiry(
        lambda name: (root / name).as_uri(), {}, clock=lambda: datetime.now(UTC), commit_bytes=commit_bytes
    )


def expire(root: Path, day: int) -> ExpiredRows:
    return expiry_of(root).expire_rows(DATASET, NOW + day * DAY)


def append(root: Path, days: Sequence[int]) -> int:
    """A commit of a row of each of these days, at the next offsets."""
    state = open_tables(root).state_since(DATASET, -1)
    start = sum(commit.rows for commit in state.commits)
    given = append_of((LEFT, range(start, start + len(days))))
    place = given.rows.schema.get_field_index("_event_time")
    times = pa.array([NOW + day * DAY for day in days], given.rows.schema.field(place).type)
    rows = given.rows.set_column(place, given.rows.schema.field(place), times)
    return open_tables(root).append(Append(DATASET, rows, [Span(LEFT, start, start + len(days))]))


def table_of(root: Path, version: int | None = None) -> deltalake.DeltaTable:
    return deltalake.DeltaTable(str(root / DATASET.name), version)


def rows_of(root: Path, version: int | None = None) -> pa.Table:
    return pa.table(table_of(root, version).to_pyarrow_table())


def days_of(root: Path, version: int | None = None) -> list[int]:
    return sorted((time - NOW).days for time in rows_of(root, version).column("_event_time").to_pylist())


def cut(root: Path, last: DatasetVersion | None = None) -> DatasetVersion:
    since = last.table_version if last else -1
    state = open_tables(root).state_since(DATASET, since)
    return next_version(DATASET, last, Uncut(since).advance(state.commits, state.table_version), NOW)


def assert_holds(root: Path, version: DatasetVersion, days: list[int]) -> None:
    rows = rows_of(root, version.table_version)
    assert days_of(root, version.table_version) == days
    assert (version.row_count, version.content_hash) == (rows.num_rows, hash_rows(rows, NAMES))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_tables(tmp_path).ensure(DATASET)
    append(tmp_path, [1, 2, 3])
    append(tmp_path, [7, 1, 8])
    append(tmp_path, [8, 9])
    return tmp_path


def test_old_rows_go_and_versions_of_before_stay(root: Path) -> None:
    first = cut(root)
    assert expire(root, 4) == ExpiredRows(4, more=False)
    second = cut(root, first)
    append(root, [10])
    third = cut(root, second)
    assert_holds(root, first, [1, 1, 2, 3, 7, 8, 8, 9])
    assert_holds(root, second, [7, 8, 8, 9])
    assert_holds(root, third, [7, 8, 8, 9, 10])
    assert third.sources[0].next_offset == 9


def test_a_file_without_other_rows_goes_and_only_one_with_both_is_written_again(root: Path) -> None:
    before = set(table_of(root).file_uris())
    [recent] = [
        action["path"]
        for action in pa.table(table_of(root).get_add_actions(flatten=True)).to_pylist()
        if action["min._offset"] == 6
    ]
    expire(root, 4)
    actions = pa.table(table_of(root).get_add_actions(flatten=True)).to_pylist()
    [rest] = [action for action in actions if action["path"] != recent]
    assert len(actions) == 2
    assert len(before) == 3
    assert [rest[name] for name in ("num_records", "min._offset", "max._offset")] == [2, 3, 5]
    assert (rest["min._event_time"], rest["max._event_time"]) == (NOW + 7 * DAY, NOW + 8 * DAY)


def test_where_nothing_is_old_nothing_is_committed(root: Path) -> None:
    version = table_of(root).version()
    # The moment itself is not older than itself.
    assert expire(root, 1) == ExpiredRows(0, more=False)
    assert expire(root, 4).rows == 4
    assert expire(root, 4) == ExpiredRows(0, more=False)
    assert table_of(root).version() == version + 1


def test_events_of_rows_that_went_are_known_to_be_stored(root: Path) -> None:
    expire(root, 20)
    assert days_of(root) == []
    # Who reads all of the topic once more.
    assert open_tables(root).append(append_of((LEFT, range(8)))) == 0
    assert append(root, [21]) == 1
    version = cut(root)
    assert_holds(root, version, [21])


def test_much_goes_in_several_commits(root: Path) -> None:
    expiry = expiry_of(root, commit_bytes=1)
    version = table_of(root).version()
    rows = []
    more = True
    while more:
        expired = expiry.expire_rows(DATASET, NOW + 4 * DAY)
        rows.append(expired.rows)
        more = expired.more
    assert sorted(rows) == [0, 1, 3]
    assert table_of(root).version() == version + 2
    assert_holds(root, cut(root), [7, 8, 8, 9])


def test_what_went_is_removed_from_disk_once_no_version_needs_it(root: Path) -> None:
    first = cut(root)
    expire(root, 4)
    append(root, [10])
    second = cut(root, first)
    maintenance = maintenance_of(root)
    assert maintenance.remove_unneeded(DATASET, [first.table_version, second.table_version]) == 0
    assert maintenance.remove_unneeded(DATASET, [second.table_version]) == 2
    assert_holds(root, second, [7, 8, 8, 9, 10])


def test_files_that_were_written_again_are_merged_with_those_of_their_time(root: Path) -> None:
    expire(root, 4)
    append(root, [10])
    assert maintenance_of(root).merge(DATASET).merged == 3
    assert days_of(root) == [7, 8, 8, 9, 10]
    assert expire(root, 8).rows == 1
    assert_holds(root, cut(root), [8, 8, 9, 10])


def test_whoever_was_paused_while_files_were_merged_takes_nothing_out_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(name: str) -> None:
        if name == "ingestion.after-expire-write":
            assert maintenance_of(root).merge(DATASET).merged == 3

    monkeypatch.setattr("headrace.ingestion.storage.expiry.fault_point", overtaken)
    with pytest.raises(CommitFailedError):
        expire(root, 4)
    monkeypatch.undo()
    assert expire(root, 4).rows == 4
    assert_holds(root, cut(root), [7, 8, 8, 9])


def test_appends_meanwhile_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(name: str) -> None:
        if name == "ingestion.after-expire-write":
            assert append(root, [10, 11]) == 2

    monkeypatch.setattr("headrace.ingestion.storage.expiry.fault_point", beside)
    assert expire(root, 4).rows == 4
    assert_holds(root, cut(root), [7, 8, 8, 9, 10, 11])


@pytest.mark.kill
@pytest.mark.parametrize("fault", ["ingestion.after-expire-write", "ingestion.after-expire-commit"])
def test_a_kill_while_rows_go_changes_nothing_else(root: Path, fault: str) -> None:
    def expire_in_a_process(**environment: str) -> int:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.component.ingestion.expiring",
                str(root),
                (NOW + 4 * DAY).isoformat(),
            ],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[3],
            check=False,
        ).returncode

    first = cut(root)
    assert expire_in_a_process(HEADRACE_FAULT=fault) == -signal.SIGKILL
    went = fault.endswith("commit")
    assert_holds(root, cut(root), [7, 8, 8, 9] if went else [1, 1, 2, 3, 7, 8, 8, 9])
    assert expire_in_a_process() == 0
    append(root, [10])
    second = cut(root, first)
    assert_holds(root, first, [1, 1, 2, 3, 7, 8, 8, 9])
    assert_holds(root, second, [7, 8, 8, 9, 10])
    # What the dead one wrote and did not commit goes, too.
    maintenance_of(root).remove_unneeded(DATASET, [second.table_version])
    needed = {Path(uri).name for uri in table_of(root).file_uris()}
    assert {path.name for path in (root / DATASET.name).glob("*.parquet")} == needed
