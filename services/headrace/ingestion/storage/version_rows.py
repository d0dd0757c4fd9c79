"""The rows of a dataset's versions, streamed from its Delta table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.storage.commit_log import Action, commit_information, read_actions
from headrace.ingestion.storage.delta import ROWS_ADDED

BATCH_ROWS: Final = 1 << 16


class DeltaVersionRows:
    """Reads tables at versions. What it returns blocks while it is iterated, and holds a few batches."""

    def __init__(self, uri_of: Callable[[str], str], storage_options: Mapping[str, str]) -> None:
        """`uri_of` gives the address of the table of a dataset's name."""
        self._uri_of = uri_of
        self._options = dict(storage_options)

    def added(self, dataset: Dataset, after: int, table_version: int) -> Iterator[pa.RecordBatch]:
        """The rows that commits after `after` and up to `table_version` added, by the dataset's own columns.

        Files that compaction wrote hold rows that are there already: only commits of samples are read.
        Raises FileNotFoundError where a file is gone, which compaction may have replaced.
        """
        uri = self._uri_of(dataset.name)
        names = {field.name for field in dataset.schema.stored_fields}
        sizes: dict[str, int] = {}
        for _, actions in read_actions(uri, after, table_version):
            sizes |= _sample_files(actions)
        # Of files whose sizes it is told it does not ask S3.
        files = pyarrow.fs.PyFileSystem(DeltaStorageHandler(uri, self._options, sizes))
        for path in sizes:
            with files.open_input_file(path) as source, pq.ParquetFile(source) as file:
                columns = [name for name in file.schema_arrow.names if name in names]
                yield from file.iter_batches(BATCH_ROWS, columns=columns)

    def at(
        self, dataset: str, table_version: int, columns: Sequence[str], where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of that table version; columns that it does not have are left out."""
        table = deltalake.DeltaTable(
            self._uri_of(dataset), version=table_version, storage_options=self._options
        )
        rows = table.to_pyarrow_dataset()
        present = [name for name in columns if name in rows.schema.names]
        yield from rows.to_batches(
            columns=present, filter=where, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1
        )


def _sample_files(actions: Sequence[Action]) -> Mapping[str, int]:
    """The files that a commit adds, and how many bytes they have, if it is one of samples."""
    if ROWS_ADDED not in commit_information(actions):
        return {}
    return {
        unquote(str(action["add"]["path"])): int(str(action["add"]["size"]))
        for action in actions
        if "add" in action
    }
