"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from headrace.ingestion.domain.dataset import (
    Dataset,
    DatasetVersion,
    SourcePartition,
    TableCommit,
)
from headrace.ingestion.domain.rejection import Rejection


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets [start, end) of one source partition."""

    source: SourcePartition
    start: int
    end: int


Place = tuple[str, int, int]
"""Topic, partition and offset of a record, within one cluster."""


@dataclass(frozen=True, slots=True)
class Append:
    """Rows for a dataset's table, and up to where they account for their sources."""

    dataset: Dataset
    rows: pa.Table
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class TableState:
    """A table's newest version and the commits that were asked for, oldest first."""

    table_version: int
    commits: Sequence[TableCommit]


class SampleTables(Protocol):
    """The datasets' tables. Methods block: call them in a thread."""

    def uri(self, dataset: str) -> str:
        """Address of the dataset's table."""

    def ensure(self, dataset: Dataset) -> None:
        """Create the table, or add the columns that it lacks."""

    def append(self, append: Append) -> int:
        """Store the rows that the table does not hold yet, atomically; return how many they were."""

    def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> pa.Table:
        """Source, id, partition and offset of the rows from these offsets, named as in the table."""

    def state_since(self, dataset: Dataset, table_version: int) -> TableState:
        """What was committed after `table_version`."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A rejection as it is kept; `sequence` grows with time. `size`: bytes of key, payload and headers."""

    sequence: int
    size: int
    reject_time: datetime
    rejection: Rejection


class Repository(Protocol):
    """Datasets, versions and rejected events, within one transaction."""

    async def insert_dataset(self, dataset: Dataset) -> bool:
        """Answer whether it was inserted: False where the name exists."""

    async def update_dataset(self, dataset: Dataset, expected: Dataset) -> bool:
        """Answer whether it was updated: False where it changed since `expected` was read."""

    async def insert_version(self, version: DatasetVersion) -> bool:
        """Answer whether it was inserted: False where the number is taken."""

    async def insert_rejected(
        self, rejections: Sequence[Rejection], reject_time: datetime
    ) -> Sequence[Rejection]:
        """Store those that are not there yet, and return them."""

    async def publish_version(self, dataset: Dataset, version: DatasetVersion, table_uri: str) -> None:
        """Queue DatasetVersionCommitted."""

    async def publish_rejected(self, rejections: Sequence[Rejection], reject_time: datetime) -> None:
        """Queue SampleRejected for each."""


class Catalogue(Protocol):
    """Reads of what is committed, and the way to change it."""

    def transaction(self) -> AbstractAsyncContextManager[Repository]:
        """Everything done on the repository, or nothing."""

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        """Those of the names that exist."""

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """By name, beginning behind `after`."""

    async def self_cutting_datasets(self) -> Sequence[Dataset]:
        """Those whose versions are cut by themselves."""

    async def last_version(self, dataset: str) -> DatasetVersion | None:
        """The newest version."""

    async def version(self, dataset: str, number: int) -> DatasetVersion | None:
        """That version."""

    async def list_versions(self, dataset: str, before: int | None, limit: int) -> Sequence[DatasetVersion]:
        """Newest first, beginning below `before`."""

    async def rejected_places(self, spans: Sequence[Span]) -> Collection[Place]:
        """The events in the spans that were rejected already."""

    async def rejected_count(self, dataset: str) -> int:
        """How many events of the dataset were rejected."""

    async def list_rejected(
        self, dataset: str | None, before: int | None, limit: int, max_bytes: int
    ) -> Sequence[RejectedRow]:
        """Newest first, beginning below the sequence `before`.

        They end with the first one, but at least the second, that makes them larger than `max_bytes`.
        """
