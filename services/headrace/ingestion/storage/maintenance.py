"""Merges small files of the datasets' tables, and removes files that nobody needs any more.

Not by delta-rs' own `optimize`: two of those that read the same version both succeed, and each row is there
twice. It leaves out the application transactions it is given, too, so that it cannot be fenced by one. Here
the merged file and the removals are one commit with an application transaction of its own: of two that
read the same version one conflicts. Appends and merges do not conflict.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Final

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from deltalake.transaction import AddAction, RemoveAction

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.table_files import (
    DataFile,
    Rewrite,
    files_to_merge,
    table_versions_to_keep,
)
from headrace.ingestion.storage.commit_log import read_commits
from headrace.ingestion.storage.delta import ERASED_ROWS, REWRITE_APP_ID
from headrace.ingestion.storage.streamed_files import read_file, write_file
from headrace.ingestion.use_cases.ports import Merge
from headrace.objects.store import table_store
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

_MERGED: Final = "headrace.mergedFiles"


class DeltaMaintenance:
    """Maintenance of the tables under one root. Every method blocks.

    One at a time for each table: of two that merge at once, one has worked in vain.
    """

    def __init__(
        self,
        uri_of: Callable[[str], str],
        storage_options: Mapping[str, str],
        *,
        clock: Clock,
        target_bytes: int,
        min_files: int,
        retention_hours: int,
    ) -> None:
        """`uri_of` gives the address of the table of a dataset's name."""
        self._uri_of = uri_of
        self._options = dict(storage_options)
        self._clock = clock
        self._target_bytes = target_bytes
        self._min_files = min_files
        self._retention_hours = retention_hours
        # How far each table's log was read, and the rewrites up to there: commits are immutable.
        self._rewrites: dict[str, tuple[int, list[Rewrite]]] = {}

    def merge(self, dataset: Dataset) -> Merge:
        """Merge some small files into one, if there are enough; rows stay as they are.

        Raises CommitFailedError where somebody else maintained or changed the table meanwhile.
        """
        table = self._open(dataset)
        actions = pa.table(table.get_add_actions(flatten=True))
        files = files_of(actions)
        chosen = files_to_merge(files, target_bytes=self._target_bytes, min_files=self._min_files)
        if chosen:
            fault_point("ingestion.before-merge")
            merged = self._written(table, dataset, chosen)
            fault_point("ingestion.after-merge-write")
            sources = actions.filter(pc.is_in(actions.column("path"), pa.array([f.path for f in chosen])))
            _commit(table, merged, chosen, _statistics(sources, merged.rows))
            fault_point("ingestion.after-merge-commit")
        return Merge(files=len(files), merged=len(chosen), size=sum(file.size for file in chosen))

    def remove_unneeded(self, dataset: Dataset, cut: Sequence[int]) -> int:
        """Remove files that no version and no reader needs, and those of writers that died; answer how many.

        `cut`: the table versions that dataset versions stand on, ascending, read before this is called.
        """
        table = self._open(dataset)
        kept = table_versions_to_keep(
            self._rewrites_of(dataset, table.version()),
            cut,
            now=self._clock(),
            retention=timedelta(hours=self._retention_hours),
        )

        def vacuum(*, dry_run: bool) -> list[str]:
            # "full": files that no commit names, too. A younger one may be a writer's, about to be committed.
            unneeded: list[str] = table.vacuum(
                retention_hours=self._retention_hours,
                enforce_retention_duration=False,
                dry_run=dry_run,
                full=True,
                keep_versions=list(kept),
            )
            return unneeded

        # It names files that are gone already, too, and would write into the log for those alone.
        present = _present(table, vacuum(dry_run=True))
        if present:
            fault_point("ingestion.before-vacuum")
            vacuum(dry_run=False)
            fault_point("ingestion.after-vacuum")
        return present

    def _open(self, dataset: Dataset) -> deltalake.DeltaTable:
        # Not the appender's: nobody waits for maintenance.
        return deltalake.DeltaTable(self._uri_of(dataset.name), storage_options=self._options)

    def _written(self, table: deltalake.DeltaTable, dataset: Dataset, files: Sequence[DataFile]) -> DataFile:
        """One new file with the rows of all, which no commit names yet."""
        rows = table.to_pyarrow_dataset()
        batches = chain.from_iterable(read_file(rows.filesystem, file.path, rows.schema) for file in files)
        path = f"part-{uuid.uuid4()}.snappy.parquet"
        size = write_file(table_store(self._uri_of(dataset.name)), path, rows.schema, dataset.schema, batches)
        assert size.rows == sum(file.rows for file in files)
        return DataFile(path, size.bytes, size.rows, _milliseconds(self._clock()))

    def _rewrites_of(self, dataset: Dataset, newest: int) -> Sequence[Rewrite]:
        read, rewrites = self._rewrites.get(dataset.name, (-1, []))
        rewrites = rewrites + [
            Rewrite(version, _time_of(entry))
            for version, entry in read_commits(self._uri_of(dataset.name), read, newest)
            if _may_remove_files(entry)
        ]
        self._rewrites[dataset.name] = (max(read, newest), rewrites)
        return rewrites


def files_of(actions: pa.Table) -> Sequence[DataFile]:
    """The files of a table's actions."""
    columns = ("path", "size_bytes", "num_records", "modification_time")
    values = actions.select(columns).cast(_FILE_COLUMNS).to_pydict()
    return [DataFile(*file) for file in zip(*(values[name] for name in columns), strict=True)]


_FILE_COLUMNS: Final = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("num_records", pa.int64()),
        ("modification_time", pa.int64()),
    ]
)


def _statistics(actions: pa.Table, rows: int) -> str:
    """What the log says of a file with the rows of all these: readers skip files by it."""
    statistics: dict[str, object] = {"numRecords": rows}
    for group, prefix, combine in (
        ("minValues", "min.", pc.min),
        ("maxValues", "max.", pc.max),
        ("nullCount", "null_count.", pc.sum),
    ):
        statistics[group] = {
            name.removeprefix(prefix): in_json(combine(actions.column(name)))
            for name in actions.column_names
            # Where one file says nothing, nothing can be said of all.
            if name.startswith(prefix) and not actions.column(name).null_count
        }
    return json.dumps(statistics)


def in_json(value: pa.Scalar) -> object:
    """A value as the log's statistics have it."""
    if pa.types.is_timestamp(value.type):
        # Not by strftime, which writes the year 1 as "1": that is no time to who reads it.
        return value.as_py().astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value.as_py()


def _may_remove_files(entry: Mapping[str, object]) -> bool:
    """Whether a commit may have taken files out; of others than appends that is not asked further."""
    if _MERGED in entry or ERASED_ROWS in entry:
        return True
    parameters = entry.get("operationParameters")
    mode = parameters.get("mode") if isinstance(parameters, Mapping) else None
    operation = str(entry["operation"])
    return not operation.startswith("VACUUM") and (operation, mode) != ("WRITE", "Append")


def _time_of(entry: Mapping[str, object]) -> datetime:
    timestamp = entry["timestamp"]
    assert isinstance(timestamp, int)
    return datetime.fromtimestamp(timestamp / 1000, UTC)


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _present(table: deltalake.DeltaTable, paths: Sequence[str]) -> int:
    """How many of the files there are."""
    found = table.to_pyarrow_dataset().filesystem.get_file_info(list(paths))
    return sum(file.type is not pa.fs.FileType.NotFound for file in found)


def _commit(
    table: deltalake.DeltaTable, merged: DataFile, files: Sequence[DataFile], statistics: str
) -> None:
    removals = [
        RemoveAction(file.path, data_change=False, deletion_timestamp=merged.modified, size=file.size)
        for file in files
    ]
    table.create_write_transaction(
        [
            AddAction(merged.path, merged.size, {}, merged.modified, data_change=False, stats=statistics),
            *removals,
        ],
        mode="append",
        schema=table.schema(),
        commit_properties=deltalake.CommitProperties(
            custom_metadata={_MERGED: str(len(files))},
            app_transactions=[deltalake.Transaction(REWRITE_APP_ID, table.version())],
        ),
    )
