"""Erasure from a table: wherever it ends, each version reads right, and the next attempt ends it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import deltalake
import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError
from tests.component.ingestion.test_delta_tables import (
    DATASET,
    LEFT,
    NAMES,
    RIGHT,
    append_of,
    open_tables,
)
from tests.component.ingestion.test_maintenance import maintenance_of
from tests.support.traces_of_data import files_with

from headrace.errors import Aborted
from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.dataset import SourcePartition, Uncut
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.erasure import DeltaErasure
from headrace.objects.store import ObjectStore

SUBJECT = "subject-4711"


class DeadError(Exception):
    pass


class MortalStore:
    """A store whose process dies before its so manieth change of an object."""

    def __init__(self, root: Path, changes: int) -> None:
        self._store = ObjectStore.from_uri(root.as_uri())
        self._left = changes

    def uri(self, path: str) -> str:
        return self._store.uri(path)

    def read_bytes(self, path: str) -> bytes:
        return self._store.read_bytes(path)

    def replace_bytes(self, path: str, data: bytes, *, before: bytes) -> None:
        self._live()
        self._store.replace_bytes(path, data, before=before)

    def drop_unfinished(self, folder: str, before: datetime) -> int:
        return self._store.drop_unfinished(folder, before)

    def delete_object(self, path: str) -> None:
        self._live()
        self._store.delete_object(path)

    def _live(self) -> None:
        if not self._left:
            raise DeadError
        self._left -= 1


def erasure_of(root: Path, changes: int = -1, *, after: timedelta = timedelta(0)) -> DeltaErasure:
    store = cast("ObjectStore", MortalStore(root, changes))
    return DeltaErasure(store, lambda name: name, {}, clock=lambda: datetime.now(UTC) + after)


def erase(erasure: DeltaErasure, since: int = 0) -> int:
    rows = erasure.erase_rows(DATASET, SUBJECT, "e1", since).rows
    erasure.erase_history(DATASET, SUBJECT, "e1")
    return rows


def append(tables: DeltaTables, source: SourcePartition, offsets: range) -> None:
    """Rows of which each third is the subject's."""
    given = append_of((source, offsets))
    ids = pa.array([SUBJECT if offset % 3 == 0 else f"p{offset}" for offset in offsets])
    tables.append(replace(given, rows=given.rows.set_column(0, "id", ids)))


def offsets_at(root: Path, version: int | None = None) -> list[tuple[int, int, bool]]:
    table = pa.table(deltalake.DeltaTable(str(root / "samples"), version).to_pyarrow_table())
    return sorted((row["_partition"], row["_offset"], row["id"] == SUBJECT) for row in table.to_pylist())


def others(rows: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    return [row for row in rows if not row[2]]


def states(root: Path) -> Mapping[int, list[tuple[int, int, bool]]]:
    newest = deltalake.DeltaTable(str(root / "samples")).version()
    return {version: offsets_at(root, version) for version in range(newest + 1)}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A table with merged files, others, a checkpoint in between, and the subject in all of it."""
    root = tmp_path / "filled"
    tables = open_tables(root)
    for first in range(0, 12, 4):
        append(tables, LEFT, range(first, first + 4))
        if first == 4:
            deltalake.DeltaTable(str(root / "samples")).create_checkpoint()
    assert maintenance_of(root).merge(DATASET).merged == 3
    append(tables, RIGHT, range(4))
    return root


def test_an_erasure_that_dies_before_any_change_leaves_each_version_right(
    filled: Path, tmp_path: Path
) -> None:
    before = states(filled)
    deaths = 0
    while True:
        root = tmp_path / f"dies-{deaths}"
        shutil.copytree(filled, root)
        try:
            erase(erasure_of(root, deaths))
        except DeadError:
            deaths += 1
        else:
            break
        for version, rows in before.items():
            found = offsets_at(root, version)
            # Each file has its rows with the subject's or without: nobody else's are gone, or there twice.
            assert others(found) == others(rows)
            assert set(found) <= set(rows)
            assert len(found) == len(set(found))
        assert erase(erasure_of(root)) == 6
        check(root, before)
    # Commits about three files, twice, a checkpoint and the files.
    assert deaths > 8
    check(root, before)


def check(root: Path, before: Mapping[int, list[tuple[int, int, bool]]]) -> None:
    assert files_with(root, [SUBJECT]) == []
    for version, rows in before.items():
        assert offsets_at(root, version) == others(rows)
    assert offsets_at(root) == others(before[max(before)])
    assert erasure_of(root).holders(DATASET, SUBJECT) == 0
    counts = erasure_of(root).row_counts(DATASET, before)
    assert counts == {version: len(others(rows)) for version, rows in before.items()}
    # What commits say adds up to what there is.
    state = open_tables(root).state_since(DATASET, -1)
    uncut = Uncut(-1).advance(state.commits, state.table_version)
    rows = pa.table(deltalake.DeltaTable(str(root / "samples")).to_pyarrow_table())
    assert uncut.rows - uncut.erased == rows.num_rows
    assert uncut.content_hash == hash_rows(rows, NAMES)


def test_a_writer_that_had_the_table_open_goes_on(filled: Path) -> None:
    tables = open_tables(filled)
    append(tables, RIGHT, range(4, 8))
    assert erase(erasure_of(filled)) == 7
    append(tables, RIGHT, range(8, 12))
    assert len(offsets_at(filled)) == 24 - 7
    # It is the subject's event of later.
    assert erasure_of(filled).holders(DATASET, SUBJECT) == 1
    maintenance_of(filled).remove_unneeded(DATASET, [2])
    assert others(offsets_at(filled, 2)) == offsets_at(filled, 2)


def test_a_merge_that_read_the_subject_does_not_bring_it_back(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = open_tables(filled)
    append(tables, RIGHT, range(4, 5))
    append(tables, RIGHT, range(5, 7))

    def overtaken(name: str) -> None:
        if name == "ingestion.after-merge-write":
            erase(erasure_of(filled))

    monkeypatch.setattr("headrace.ingestion.storage.maintenance.fault_point", overtaken)
    with pytest.raises(CommitFailedError):
        maintenance_of(filled).merge(DATASET)
    assert others(offsets_at(filled)) == offsets_at(filled)
    # Its file is nobody's, and goes when no writer can be about to commit it.
    assert erasure_of(filled).holders(DATASET, SUBJECT) == 1
    erase(erasure_of(filled))
    assert erasure_of(filled).holders(DATASET, SUBJECT) == 1
    erase(erasure_of(filled, after=timedelta(hours=2)))
    assert erasure_of(filled).holders(DATASET, SUBJECT) == 0


@pytest.mark.parametrize("paused", ["write", "removals", "log"])
def test_whoever_was_paused_brings_nothing_back(
    filled: Path, monkeypatch: pytest.MonkeyPatch, paused: str
) -> None:
    before = states(filled)
    erased = erasure_of(filled).erase_rows(DATASET, SUBJECT, "e1", 0).rows
    awake = True

    def overtaken(name: str) -> None:
        nonlocal awake
        if awake and name == f"ingestion.after-erase-{paused}":
            awake = False
            erase(erasure_of(filled))

    monkeypatch.setattr("headrace.ingestion.storage.erasure.fault_point", overtaken)
    if paused == "log":
        # It has nothing left to write.
        erase(erasure_of(filled))
    else:
        with pytest.raises(Aborted) as late:
            erase(erasure_of(filled))
        assert late.value.reason == "OBJECT_CHANGED"
    assert not awake
    assert erased == 6
    check(filled, before)


def test_a_file_that_a_dead_writer_left_unfinished_counts_until_it_is_removed(filled: Path) -> None:
    left = filled / "samples" / "part-0.parquet#1"
    left.write_bytes(SUBJECT.encode())
    erase(erasure_of(filled))
    assert erasure_of(filled).holders(DATASET, SUBJECT) == 1
    assert erasure_of(filled, after=timedelta(hours=2)).holders(DATASET, SUBJECT) == 0
    assert not left.exists()


def test_a_checkpoint_of_a_slow_writer_changes_neither_counts_nor_the_newest_rows(filled: Path) -> None:
    before = states(filled)
    log = filled / "samples" / "_delta_log"
    [checkpoint] = log.glob("*.checkpoint*.parquet")
    written = {path: path.read_bytes() for path in (checkpoint, log / "_last_checkpoint")}
    erase(erasure_of(filled))
    for path, content in written.items():
        path.write_bytes(content)
    counts = erasure_of(filled).row_counts(DATASET, before)
    assert counts == {version: len(others(rows)) for version, rows in before.items()}
    assert offsets_at(filled) == others(before[max(before)])
    # Versions behind it are to be read as soon as both are removed.
    for path in written:
        path.unlink()
    check(filled, before)
