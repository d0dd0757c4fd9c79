"""Takes old rows out of the datasets' tables.

As merging does, by a commit with an application transaction that tells it from other rewrites, and that says
how many rows go and what their hash is: versions that are cut from there on are without them, versions from
before stay as they are. The log's statistics say which files have old rows. A file that has no others goes,
and nothing of it is written again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from headrace.ingestion.domain.content_hash import combine, hash_rows, to_hex
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.retention import is_older, is_recent
from headrace.ingestion.domain.table_files import DataFile
from headrace.ingestion.storage.delta import ERASED_HASH, ERASED_ROWS, REWRITE_APP_ID
from headrace.ingestion.storage.file_rewriting import BATCH_ROWS, FORMAT, rewrite
from headrace.ingestion.storage.maintenance import files_of
from headrace.ingestion.use_cases.ports import ExpiredRows
from headrace.objects.store import table_store
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

_EXPIRED: Final = "headrace.expired"
_EARLIEST: Final = "min._event_time"
# What is done in vain where the process dies, or somebody else rewrites the table meanwhile.
_COMMIT_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class _Old:
    """A file that has old rows, how many, and their hash."""

    file: DataFile
    rows: int
    digest: int


class DeltaExpiry:
    """Expiry in the tables under one root. Every method blocks, and may be repeated.

    One at a time for a table, and not beside its maintenance: of two that rewrite it one has worked in vain.
    """

    def __init__(
        self,
        uri_of: Callable[[str], str],
        storage_options: Mapping[str, str],
        *,
        clock: Clock,
        commit_bytes: int = _COMMIT_BYTES,
    ) -> None:
        """`uri_of` gives the address of the table of a dataset's name.

        `commit_bytes`: a commit takes no further file out once those that it does are so large together.
        """
        self._uri_of = uri_of
        self._options = dict(storage_options)
        self._clock = clock
        self._commit_bytes = commit_bytes

    def expire_rows(self, dataset: Dataset, before: datetime) -> ExpiredRows:
        """Take some of the rows out whose event time is earlier, in one commit.

        Raises CommitFailedError where somebody else rewrote the table meanwhile.
        """
        uri = self._uri_of(dataset.name)
        table = deltalake.DeltaTable(uri, storage_options=self._options)
        candidates = _candidates(table, before)
        # Of files whose sizes it is told it does not ask S3.
        sizes = {file.path: file.size for file in candidates}
        files = pyarrow.fs.PyFileSystem(DeltaStorageHandler(uri, self._options, sizes))
        old: list[_Old] = []
        size = 0
        for found in self._old(files, candidates, before):
            old.append(found)
            size += found.file.size
            if size >= self._commit_bytes:
                break
        if old:
            self._commit(table, files, dataset, before, old)
        return ExpiredRows(sum(each.rows for each in old), more=size >= self._commit_bytes)

    def _old(
        self, files: pyarrow.fs.FileSystem, candidates: Sequence[DataFile], before: datetime
    ) -> Iterator[_Old]:
        for file in candidates:
            rows, digest = 0, 0
            batches = FORMAT.make_fragment(file.path, files).to_batches(
                filter=is_older(before), batch_size=BATCH_ROWS, batch_readahead=1
            )
            for batch in batches:
                if batch.num_rows:
                    names = [name for name in batch.schema.names if not name.startswith("_")]
                    rows += batch.num_rows
                    digest = combine(digest, hash_rows(pa.Table.from_batches([batch]), names))
            if rows:
                yield _Old(file, rows, digest)

    def _commit(
        self,
        table: deltalake.DeltaTable,
        files: pyarrow.fs.FileSystem,
        dataset: Dataset,
        before: datetime,
        old: Sequence[_Old],
    ) -> None:
        store = table_store(self._uri_of(dataset.name))
        now = int(self._clock().timestamp() * 1000)
        actions: list[AddAction | RemoveAction] = []
        for file in (each.file for each in old if each.rows < each.file.rows):
            name = f"part-{uuid.uuid4()}.snappy.parquet"
            rest = rewrite(files, store, dataset.schema, file.path, name, is_recent(before))
            # As old as it was: merging puts files of one time together.
            actions.append(
                AddAction(rest.path, rest.size, {}, file.modified, data_change=True, stats=rest.statistics)
            )
        fault_point("ingestion.after-expire-write")
        actions += [
            RemoveAction(each.file.path, data_change=True, deletion_timestamp=now, size=each.file.size)
            for each in old
        ]
        table.create_write_transaction(
            actions,
            mode="append",
            schema=table.schema(),
            commit_properties=deltalake.CommitProperties(
                custom_metadata={
                    _EXPIRED: before.isoformat(),
                    ERASED_ROWS: str(sum(each.rows for each in old)),
                    ERASED_HASH: to_hex(combine(0, *(each.digest for each in old))),
                },
                app_transactions=[deltalake.Transaction(REWRITE_APP_ID, table.version())],
            ),
        )
        fault_point("ingestion.after-expire-commit")


def _candidates(table: deltalake.DeltaTable, before: datetime) -> Sequence[DataFile]:
    """The files that may have old rows, by the log's statistics."""
    actions = pa.table(table.get_add_actions(flatten=True))
    if _EARLIEST in actions.column_names:
        earliest = actions.column(_EARLIEST)
        # A file of which the log says nothing may have some.
        actions = actions.filter(pc.fill_null(pc.less(earliest, pa.scalar(before, earliest.type)), True))
    return [DataFile(unquote(file.path), file.size, file.rows, file.modified) for file in files_of(actions)]
