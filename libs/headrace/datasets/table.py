"""One version of a Delta table, as parts that can be read on their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import dataset as arrow
from pyarrow import fs, parquet

from headrace.errors import InvalidArgument, NotFound, Unavailable
from headrace.objects.store import delta_storage_options

# Rows that Arrow decodes at a time: columns of so many stay in the processor's cache.
DECODED_ROWS = 1 << 16
# Where a text begins in its column.
OFFSET_BYTES = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of one row group of one file."""

    file: str
    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Table:
    """A table at one version, whatever is appended to it or compacted meanwhile.

    `parts`: its row groups, by file and place; `columns`: what it has.
    """

    def __init__(self, uri: str, version: int, dataset: arrow.FileSystemDataset) -> None:
        self.uri = uri
        self.version = version
        self._schema: pa.Schema = dataset.schema
        self._files: dict[str, arrow.ParquetFileFragment] = {
            file.path: file for file in sorted(dataset.get_fragments(), key=lambda file: str(file.path))
        }
        self.parts = tuple(
            Part(path, group.id, 0, group.num_rows)
            for path, file in self._files.items()
            for group in file.row_groups
            if group.num_rows
        )

    @classmethod
    def open(cls, uri: str, version: int) -> Table:
        """Open a local or an S3 table. Raises NotFound/TABLE_NOT_FOUND, Unavailable/STORE_UNAVAILABLE."""
        try:
            table = DeltaTable(uri, version=version, storage_options=delta_storage_options())
            with _readable(uri, version):
                return cls(uri, version, table.to_pyarrow_dataset(filesystem=_local(uri)))
        except (TableNotFoundError, DeltaError) as error:
            raise _not_found(uri, version, error) from error

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(self._schema.names)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self.parts))

    def decoded_bytes(self, columns: Collection[str]) -> int:
        """About how much memory all rows of these columns take in Arrow; a file without one counts nothing.

        Parquet keeps a text that is there often once: if that is more, each counts as the largest one.
        """
        return sum(
            _decoded_bytes(group.column(index), self._schema.field(name).type)
            for file in self._files.values()
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups))
            for index in range(group.num_columns)
            if (name := group.column(index).path_in_schema) in columns
        )

    def require(self, columns: Sequence[str]) -> None:
        """Raise InvalidArgument/UNKNOWN_COLUMN unless the table has all of these."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise InvalidArgument(
                "UNKNOWN_COLUMN", f"the table {self.uri} has no column {', '.join(missing)}"
            )

    def scan(
        self, part: Part, columns: Sequence[str], skip: int = 0, batch_rows: int = DECODED_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Read a part's rows in their order, without its first `skip`; only these columns are decoded.

        At most `batch_rows` of them come at a time. A file without a column, written before there was one,
        has nulls there. Raises as `open` does.
        """
        group = self._files[part.file].subset(row_group_ids=[part.group])
        left, wanted = part.start + skip, len(part) - skip
        with _readable(self.uri, self.version):
            # In the caller's thread, which is a reader's own: several at once decode side by side.
            for batch in group.to_batches(
                schema=self._schema,
                columns=list(columns),
                batch_size=min(batch_rows, DECODED_ROWS),
                use_threads=False,
            ):
                rows = batch.slice(min(left, len(batch)), wanted)
                left -= min(left, len(batch))
                wanted -= len(rows)
                if len(rows):
                    yield rows
                if not wanted:
                    return

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read all rows at once, parts in their order. Raises as `open` does."""
        self.require(columns)
        batches = [batch for part in self.parts for batch in self.scan(part, columns)]
        schema = pa.schema([self._schema.field(name) for name in columns])
        return pa.Table.from_batches(batches, schema)


def _decoded_bytes(chunk: parquet.ColumnChunkMetaData, kind: pa.DataType) -> int:
    if pa.types.is_primitive(kind):
        return int(chunk.num_values * kind.bit_width // 8)
    size = int(chunk.total_uncompressed_size)
    if pa.types.is_string(kind) and chunk.statistics is not None and chunk.statistics.has_min_max:
        size = max(size, chunk.num_values * (len(chunk.statistics.max.encode()) + OFFSET_BYTES))
    return size


def _local(uri: str) -> fs.FileSystem | None:
    """Read local files without the detour through delta-rs and Python; None: they are not local."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    folder = unquote(parts.path) if parts.scheme else uri
    return fs.SubTreeFileSystem(str(Path(folder).absolute()), fs.LocalFileSystem())


@contextmanager
def _readable(uri: str, version: int) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _not_found(uri, version, error) from error
    except OSError as error:
        raise Unavailable("STORE_UNAVAILABLE", f"the table {uri} cannot be read: {error}") from error


def _not_found(uri: str, version: int, error: Exception) -> NotFound:
    return NotFound("TABLE_NOT_FOUND", f"version {version} of the table {uri} cannot be read: {error}")
