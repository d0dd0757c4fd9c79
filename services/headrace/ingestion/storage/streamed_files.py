"""A table's files, read and written a piece at a time: how large they are makes no difference to memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.storage.delta import repeating_columns
from headrace.objects.store import ObjectStore

# A row group is held in memory until it is written.
_ROW_GROUP_ROWS: Final = 128 * 1024
_ROW_GROUP_BYTES: Final = 32 * 1024 * 1024
_BATCH_ROWS: Final = 16 * 1024
_BATCH_BYTES: Final = 8 * 1024 * 1024


class FileSize(NamedTuple):
    """How much a file holds."""

    rows: int
    bytes: int


def read_file(
    files: pyarrow.fs.FileSystem, path: str, columns: pa.Schema | None = None
) -> Iterator[pa.RecordBatch]:
    """A file's rows in their order, with these columns; with its own where none are given.

    What the file lacks is null, what it has in a narrower type is widened.
    """
    with files.open_input_file(path) as source, pq.ParquetFile(source) as file:
        # Arrow's dataset scanner would decode whole row groups, and the next one with each. Here the bytes of
        # one are fetched at once, for S3's sake, and decoded as they are asked for.
        for number in range(file.num_row_groups):
            size = _batch_rows(file.metadata.row_group(number))
            # By one thread: the others are for samples that come in, and each would keep memory of its own.
            for batch in file.iter_batches(size, row_groups=[number], use_threads=False):
                yield batch if columns is None else _with_columns(batch, columns)


def write_file(
    store: ObjectStore,
    path: str,
    columns: pa.Schema,
    schema: Schema,
    batches: Iterable[pa.RecordBatch],
) -> FileSize:
    """Write a file of rows with these columns. `store`: the table's; `schema`: the dataset's."""
    rows = 0
    with (
        pa.PythonFile(store.open_writer(path), mode="w") as stream,
        pq.ParquetWriter(
            stream,
            columns,
            compression="snappy",
            use_dictionary=[name for name in repeating_columns(schema) if name in columns.names],
        ) as writer,
    ):
        for group in _row_groups(batches):
            rows += sum(batch.num_rows for batch in group)
            writer.write_table(pa.Table.from_batches(group))
            group.clear()
            # Arrow's allocator would keep it for this thread, which may not come again.
            pa.default_memory_pool().release_unused()
        writer.close()
        return FileSize(rows, stream.tell())


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The batches in parts that are worth a row group each. Whoever is done with a part empties it."""
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if rows:
        yield group


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """So many of its rows as make a batch."""
    rows: int = group.num_rows * _BATCH_BYTES // max(group.total_byte_size, 1)
    return max(1, min(_BATCH_ROWS, rows))


def _with_columns(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    present = set(batch.schema.names)
    return pa.RecordBatch.from_arrays(
        [
            batch.column(field.name).cast(field.type)
            if field.name in present
            else pa.nulls(batch.num_rows, field.type)
            for field in columns
        ],
        schema=columns,
    )
