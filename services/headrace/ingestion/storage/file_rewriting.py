"""A table's file written again without some of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.storage.maintenance import in_json
from headrace.ingestion.storage.streamed_files import read_file, write_file
from headrace.objects.store import ObjectStore

FORMAT: Final = ds.ParquetFileFormat()
BATCH_ROWS: Final = 1 << 16
# What files are looked up by, as in the table's own statistics.
_STATISTICS: Final = ("_event_time", "_partition", "_offset")


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written, and what the log says of it."""

    path: str
    size: int
    statistics: str


def rewrite(
    files: pyarrow.fs.FileSystem,
    store: ObjectStore,
    schema: Schema,
    path: str,
    to: str,
    kept: pc.Expression,
) -> Written:
    """Write those of a file's rows that are kept to another file.

    `files`, `store`: the table's, to read and to write; `schema`: the dataset's.
    """
    columns = FORMAT.make_fragment(path, files).physical_schema
    bounds = _Bounds()
    batches = bounds.through(batch.filter(kept) for batch in read_file(files, path))
    size = write_file(store, to, columns, schema, batches)
    return Written(to, size.bytes, bounds.statistics())


class _Bounds:
    """What the log says of a file's rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._nulls: Counter[str] = Counter()
        self._low: dict[str, pa.Scalar] = {}
        self._high: dict[str, pa.Scalar] = {}

    def through(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass on rows that are looked at."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        for name in _STATISTICS:
            column = batch.column(name)
            self._nulls[name] += column.null_count
            found = pc.min_max(column)
            if not found["min"].is_valid:
                continue
            self._low[name] = _extreme(pc.min, self._low.get(name), found["min"])
            self._high[name] = _extreme(pc.max, self._high.get(name), found["max"])

    def statistics(self) -> str:
        return json.dumps(
            {
                "numRecords": self._rows,
                "minValues": {name: in_json(value) for name, value in self._low.items()},
                "maxValues": {name: in_json(value) for name, value in self._high.items()},
                "nullCount": dict(self._nulls),
            }
        )


def _extreme(of: Callable[[pa.Array], pa.Scalar], known: pa.Scalar | None, found: pa.Scalar) -> pa.Scalar:
    return found if known is None else of(pa.array([known.as_py(), found.as_py()], found.type))
