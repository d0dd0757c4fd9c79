"""Takes a subject's rows out of a dataset's table: the newest version, and every one before.

The newest version by a commit, as merging does: files that hold the subject go, files without come, and an
application transaction tells it from other rewrites. Versions before it are commits that stay; but what they
say of a file can be changed. Each file that holds the subject gets a successor without, and the log's entries
about it are made to be about the successor: first the removals are said of both, then the addition is said
of the successor alone, so that at no moment a version has a row twice, or lacks one. Only then the file is
removed.

Every step finds what is left to do from the table itself: one that died is done again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from headrace.errors import Aborted
from headrace.ingestion.domain.content_hash import combine, hash_rows, to_hex
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.storage.commit_log import Action, read_actions, read_commits
from headrace.ingestion.storage.delta import ERASED_HASH, ERASED_ROWS, REWRITE_APP_ID
from headrace.ingestion.storage.file_rewriting import FORMAT, Written, rewrite
from headrace.ingestion.use_cases.ports import ErasedRows
from headrace.objects.store import ObjectStore, table_store
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

_ERASURE: Final = "headrace.erasure"
_NAMES: Final = uuid.UUID("5a0f3f0e-5b0c-4b58-9d5e-0d5f6d0f3a11")
_ATTEMPTS: Final = 12
# A younger file that no commit names may be a writer's that is about to commit it (ADR 16).
_WRITERS_PATIENCE: Final = timedelta(hours=1)


class DeltaErasure:
    """Erasure in the tables of one store. Every method blocks, and may be repeated.

    One at a time for a table, and not beside its maintenance, whose new files could hold what is erased.
    """

    def __init__(
        self,
        store: ObjectStore,
        path_of: Callable[[str], str],
        storage_options: Mapping[str, str],
        *,
        clock: Clock,
    ) -> None:
        """`path_of` gives the folder, in the store, of the table of a dataset's name."""
        self._store = store
        self._path_of = path_of
        self._options = dict(storage_options)
        self._clock = clock

    def newest(self, dataset: Dataset) -> int:
        """The table's newest version."""
        return int(self._open(dataset).version())

    def erase_rows(self, dataset: Dataset, subject: str, erasure: str, since: int) -> ErasedRows:
        """Take the subject out of the newest version; answer what this erasure did since a table version.

        Raises Aborted COMMIT_CONFLICT where others rewrote the table at each attempt.
        """
        for _ in range(_ATTEMPTS):
            table = self._open(dataset)
            held = self._holding(dataset, subject, _live(table))
            if not held:
                return self._done(dataset, erasure, since, table.version())
            try:
                self._commit(table, dataset, subject, erasure, held)
            except CommitFailedError:
                continue
        raise Aborted("COMMIT_CONFLICT", f"others rewrote {dataset.name} at each of {_ATTEMPTS} attempts")

    def erase_history(self, dataset: Dataset, subject: str, erasure: str) -> None:
        """Take the subject out of the files that only earlier versions have."""
        table = self._open(dataset)
        live = set(_live(table))
        held = [
            path for path in self._holding(dataset, subject, self._data_files(dataset)) if path not in live
        ]
        if not held:
            return
        successors = {path: _successor(erasure, path) for path in held}
        commits = self._commits_about(dataset, table.version(), {*successors, *successors.values()})
        added = {path for text in commits.values() for path in _paths(_actions(text), "add")}
        named = {path: to for path, to in successors.items() if path in added}
        written = {path: self._without(dataset, subject, path, to) for path, to in named.items()}
        fault_point("ingestion.after-erase-write")
        self._rename(dataset, commits, written)
        self._drop_checkpoints(dataset, table)
        for path, to in successors.items():
            if path in named or to in added or self._is_old(dataset, path):
                self._store.delete_object(f"{self._path_of(dataset.name)}/{path}")
        fault_point("ingestion.after-erase-remove")

    def holders(self, dataset: Dataset, subject: str) -> int:
        """How many files below the table's folder hold the subject, whoever wrote them.

        One that is not written to its end may, too: for an hour it counts, and then it is removed.
        """
        unfinished = self._store.drop_unfinished(
            self._path_of(dataset.name), self._clock() - _WRITERS_PATIENCE
        )
        return unfinished + len(self._holding(dataset, subject, self._data_files(dataset)))

    def row_counts(self, dataset: Dataset, table_versions: Collection[int]) -> Mapping[int, int]:
        """How many rows the table has at each of these versions, by the log alone.

        A checkpoint that a slow writer leaves of a version before an erasure says what was then.
        """
        counts = {}
        files: dict[str, int] = {}
        rows = 0
        newest = max(table_versions, default=-1)
        for version, actions in read_actions(self._uri(dataset), -1, newest):
            rows -= sum(files.pop(path, 0) for path in _paths(actions, "remove"))
            added = _rows_added(actions)
            files |= added
            rows += sum(added.values())
            if version in table_versions:
                counts[version] = rows
        return counts

    def _uri(self, dataset: Dataset) -> str:
        return self._store.uri(self._path_of(dataset.name))

    def _open(self, dataset: Dataset) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(self._uri(dataset), storage_options=self._options)

    def _files(self, dataset: Dataset) -> pyarrow.fs.FileSystem:
        return pyarrow.fs.PyFileSystem(DeltaStorageHandler(self._uri(dataset), self._options))

    def _data_files(self, dataset: Dataset) -> Sequence[str]:
        found = self._files(dataset).get_file_info(pyarrow.fs.FileSelector("", recursive=True))
        paths = [file.path for file in found if file.is_file]
        return [path for path in paths if path.endswith(".parquet") and not path.startswith("_delta_log/")]

    def _holding(self, dataset: Dataset, subject: str, paths: Sequence[str]) -> Sequence[str]:
        files = self._files(dataset)
        is_subject = pc.field(dataset.schema.key) == subject
        return [path for path in paths if FORMAT.make_fragment(path, files).count_rows(filter=is_subject) > 0]

    def _is_old(self, dataset: Dataset, path: str) -> bool:
        [file] = self._files(dataset).get_file_info([path])
        modified: datetime | None = file.mtime
        return modified is not None and modified < self._clock() - _WRITERS_PATIENCE

    def _commit(
        self,
        table: deltalake.DeltaTable,
        dataset: Dataset,
        subject: str,
        erasure: str,
        held: Sequence[str],
    ) -> None:
        files = self._files(dataset)
        is_subject = pc.field(dataset.schema.key) == subject
        erased, digest = 0, 0
        for path in held:
            rows = FORMAT.make_fragment(path, files).to_table(filter=is_subject)
            names = [name for name in rows.column_names if not name.startswith("_")]
            erased += rows.num_rows
            digest = combine(digest, hash_rows(rows, names))
        now = int(self._clock().timestamp() * 1000)
        fresh = [
            self._without(dataset, subject, path, f"part-{uuid.uuid4()}.snappy.parquet") for path in held
        ]
        table.create_write_transaction(
            [
                *(AddAction(f.path, f.size, {}, now, data_change=True, stats=f.statistics) for f in fresh),
                *(RemoveAction(path, data_change=True, deletion_timestamp=now) for path in held),
            ],
            mode="append",
            schema=table.schema(),
            commit_properties=deltalake.CommitProperties(
                custom_metadata={
                    _ERASURE: erasure,
                    ERASED_ROWS: str(erased),
                    ERASED_HASH: to_hex(digest),
                },
                app_transactions=[deltalake.Transaction(REWRITE_APP_ID, table.version())],
            ),
        )

    def _done(self, dataset: Dataset, erasure: str, since: int, newest: int) -> ErasedRows:
        own = [
            (version, int(str(entry[ERASED_ROWS])))
            for version, entry in read_commits(self._uri(dataset), since, newest)
            if entry.get(_ERASURE) == erasure
        ]
        return ErasedRows(max((version for version, _ in own), default=since), sum(rows for _, rows in own))

    def _without(self, dataset: Dataset, subject: str, path: str, to: str) -> Written:
        """Write a file's other rows to another file."""
        others = pc.field(dataset.schema.key) != subject
        store = table_store(self._uri(dataset))
        return rewrite(self._files(dataset), store, dataset.schema, path, to, others)

    def _commits_about(self, dataset: Dataset, newest: int, paths: Collection[str]) -> dict[int, bytes]:
        """The log's commits that name one of the files, as they are stored, by their versions."""
        found = {}
        for version in range(newest + 1):
            text = self._store.read_bytes(self._commit_path(dataset, version))
            actions = _actions(text)
            if not {*_paths(actions, "add"), *_paths(actions, "remove")}.isdisjoint(paths):
                found[version] = text
        return found

    def _rename(self, dataset: Dataset, commits: Mapping[int, bytes], written: Mapping[str, Written]) -> None:
        """Make the log's entries about files be about their successors."""
        both = self._rewrite(dataset, commits, lambda actions: _removing_both(actions, written))
        fault_point("ingestion.after-erase-removals")
        self._rewrite(dataset, both, lambda actions: _adding(actions, written))
        fault_point("ingestion.after-erase-log")

    def _rewrite(
        self,
        dataset: Dataset,
        commits: Mapping[int, bytes],
        change: Callable[[Sequence[Action]], Sequence[Action]],
    ) -> Mapping[int, bytes]:
        """Change commits, and answer them as they are now.

        Raises Aborted OBJECT_CHANGED: whoever was paused, and wakes when another one has erased, must not
        bring back what the log said before.
        """
        rewritten = {}
        for version, text in commits.items():
            actions = _actions(text)
            changed = change(actions)
            rewritten[version] = text
            if changed != actions:
                rewritten[version] = "\n".join(
                    json.dumps(action, separators=(",", ":")) for action in changed
                ).encode()
                self._store.replace_bytes(
                    self._commit_path(dataset, version), rewritten[version], before=text
                )
        return rewritten

    def _commit_path(self, dataset: Dataset, version: int) -> str:
        return f"{self._path_of(dataset.name)}/_delta_log/{version:020}.json"

    def _drop_checkpoints(self, dataset: Dataset, table: deltalake.DeltaTable) -> None:
        """Remove checkpoints that may name the files; the log, which is kept whole, says what they said."""
        folder = "_delta_log"
        found = self._files(dataset).get_file_info(pyarrow.fs.FileSelector(folder))
        stale = [file.path for file in found if ".checkpoint" in file.path]
        if not stale:
            return
        table.update_incremental()
        table.create_checkpoint()
        newest = f"{folder}/{table.version():020}."
        for path in stale:
            if not path.startswith(newest):
                self._store.delete_object(f"{self._path_of(dataset.name)}/{path}")


def _live(table: deltalake.DeltaTable) -> Sequence[str]:
    paths: list[str] = pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
    return [unquote(path) for path in paths]


def _successor(erasure: str, path: str) -> str:
    """A file's successor: always the same, so that who begins anew knows it."""
    return f"part-{uuid.uuid5(_NAMES, f'{erasure}/{path}')}.snappy.parquet"


def _actions(text: bytes) -> Sequence[Action]:
    return [json.loads(line) for line in text.splitlines()]


def _paths(actions: Sequence[Action], kind: str) -> Sequence[str]:
    return [unquote(str(action[kind]["path"])) for action in actions if kind in action]


def _rows_added(actions: Sequence[Action]) -> Mapping[str, int]:
    """How many rows each file has that they add."""
    return {
        unquote(str(action["add"]["path"])): int(json.loads(str(action["add"]["stats"]))["numRecords"])
        for action in actions
        if "add" in action
    }


def _removing_both(actions: Sequence[Action], written: Mapping[str, Written]) -> Sequence[Action]:
    """The actions, with the removal of each file's successor beside that of the file."""
    there = {*_paths(actions, "remove")}
    changed = list(actions)
    for action in actions:
        if "remove" in action:
            file = written.get(unquote(str(action["remove"]["path"])))
            if file and file.path not in there:
                changed.append({"remove": {**action["remove"], "path": file.path, "size": file.size}})
    return changed


def _adding(actions: Sequence[Action], written: Mapping[str, Written]) -> Sequence[Action]:
    """The actions, with the addition of each file's successor in the place of the file's."""
    changed: list[Action] = []
    for action in actions:
        file = written.get(unquote(str(action["add"]["path"]))) if "add" in action else None
        if file is None:
            changed.append(action)
            continue
        says = {"path": file.path, "size": file.size, "stats": file.statistics}
        changed.append({"add": {**action["add"], **says}})
    return changed
