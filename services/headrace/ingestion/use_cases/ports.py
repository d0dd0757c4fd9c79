"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingestion.domain.avro import UnusableSchema
from headrace.ingestion.domain.dataset import (
    Dataset,
    DatasetVersion,
    SourcePartition,
    TableCommit,
)
from headrace.ingestion.domain.erasure import Erasure
from headrace.ingestion.domain.evolution import SchemaVersion
from headrace.ingestion.domain.profile import Profile
from headrace.ingestion.domain.rejection import Rejection, State
from headrace.ingestion.domain.rejects import Episode, RejectShare
from headrace.ingestion.domain.replay import Replay
from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.domain.source_topic import Feed
from headrace.messaging.producer import Encoded
from headrace.messaging.record_columns import Records


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets [start, end) of one source partition."""

    source: SourcePartition
    start: int
    end: int


Place = tuple[str, int, int]
"""Topic, partition and offset of a record, within one cluster."""

SchemaName = tuple[str, int]
"""A dataset, and a version of its schema."""


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


@dataclass(frozen=True, slots=True)
class RejectedFilter:
    """Which rejected events: of a dataset, for a reason, in a state; None: of, for, in any."""

    dataset: str | None = None
    reason: str | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of an entry, and when."""

    state: State
    time: datetime | None


@dataclass(frozen=True, slots=True)
class PendingCount:
    """A dataset, how many of its events were rejected within its window and wait, and its open episode."""

    dataset: Dataset
    rejected: int
    episode: Episode | None


@dataclass(frozen=True, slots=True)
class RejectedPage:
    """Some of a dataset's entries, one after the other: the last one's id, and when the newest came."""

    last: int
    newest: datetime


class SampleTables(Protocol):
    """The datasets' tables. Methods block: call them in a thread."""

    def uri(self, dataset: str) -> str:
        """Address of the dataset's table."""

    def ensure(self, dataset: Dataset) -> None:
        """Create the table, or add the columns that it lacks."""

    def append(self, append: Append) -> int:
        """Store the rows that the table does not hold yet, atomically; return how many they were."""

    def accounted(self, dataset: Dataset, spans: Sequence[Span]) -> Mapping[SourcePartition, int]:
        """Up to which offsets of these sources the table says what became rows.

        It stays so, unless by the dataset's schema: from here on no rows are added by one that was there
        before the version that was declared last.
        """

    def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> pa.Table:
        """Source, id, partition and offset of the rows from these offsets, named as in the table."""

    def state_since(self, dataset: Dataset, table_version: int) -> TableState:
        """What was committed after `table_version`."""

    def state_after(self, dataset: Dataset, moment: datetime) -> TableState:
        """What was committed after a moment."""


class VersionRows(Protocol):
    """The rows of versions. Methods block: call them in a thread. Batches are read as they are asked for."""

    def added(self, dataset: Dataset, after: int, table_version: int) -> Iterator[pa.RecordBatch]:
        """The rows that commits after the table version `after` and up to `table_version` added."""

    def at(
        self, dataset: str, table_version: int, columns: Sequence[str], where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of that table version; columns that it does not have are left out."""


class TopicReader(Protocol):
    """Topics, read without a group."""

    async def cluster(self) -> str:
        """The cluster's id."""

    def read(self, source: SourcePartition, start: int, end: int) -> AsyncGenerator[Records, None]:
        """The records at the offsets from `start` and before `end`, and maybe some behind."""


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema as its registry has it. `format` is AVRO, PROTOBUF or JSON.

    `references`: of Avro, the definitions of the schemas that it refers to, and of those that they do.
    `descriptors`: of Protobuf, what the definition was compiled to with those, a FileDescriptorSet.
    `unusable`: why it can be neither.
    """

    format: str
    definition: str
    references: tuple[str, ...] = ()
    descriptors: bytes = b""
    unusable: UnusableSchema | None = None


class SchemaRegistry(Protocol):
    """Schemas by the ids that payloads carry."""

    async def schemas(self, ids: Collection[int]) -> Mapping[int, RegisteredSchema]:
        """Those of the ids that the registry knows.

        Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE where it does not answer for all of them: what it
        knows is not decided then.
        """


class ClaimedPayloads(Protocol):
    """The payloads that producers put into the object store.

    All but `path` raise Unavailable STORE_UNAVAILABLE where the store does not do its work.
    """

    folder: str
    """Address of the folder below which payloads may lie."""

    def path(self, reference: str) -> str | None:
        """Where the payload of that address lies; None where no payload may."""

    async def size(self, path: str) -> int:
        """Bytes of a payload. Raises NotFound."""

    def read(self, path: str, size: int) -> AsyncIterator[bytes]:
        """A payload of so many bytes, in parts. Raises NotFound."""

    def older(self, before: datetime) -> AsyncIterator[str]:
        """Paths of the payloads that were last written before a moment."""

    async def remove(self, path: str) -> None:
        """Remove a payload; one that is not there is fine."""


@dataclass(frozen=True, slots=True)
class Merge:
    """A table had `files`; `merged` of them, `size` bytes in all, became one: 0 where they were too few."""

    files: int
    merged: int
    size: int


class TableMaintenance(Protocol):
    """Care for the datasets' tables. Methods block: call them in a thread, one at a time for each table."""

    def merge(self, dataset: Dataset) -> Merge:
        """Merge some small files into one, if there are enough; rows stay as they are."""

    def remove_unneeded(self, dataset: Dataset, cut: Sequence[int]) -> int:
        """Remove files that no version and no reader needs; answer how many.

        `cut`: the table versions that dataset versions stand on, ascending, read before this is called.
        """


@dataclass(frozen=True, slots=True)
class ExpiredRows:
    """How many rows were taken out, and whether there may be more."""

    rows: int
    more: bool


class TableExpiry(Protocol):
    """Takes old rows out of tables. Methods block: call them in a thread, one at a time for a table."""

    def expire_rows(self, dataset: Dataset, before: datetime) -> ExpiredRows:
        """Take some of the rows out whose event time is earlier."""


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """The table version from which on a subject is in no row, and how many rows were taken out."""

    table_version: int
    rows: int


class TableErasure(Protocol):
    """Erasure from the datasets' tables. Methods block: call them in a thread, one at a time for a table."""

    def newest(self, dataset: Dataset) -> int:
        """The table's newest version."""

    def erase_rows(self, dataset: Dataset, subject: str, erasure: str, since: int) -> ErasedRows:
        """Take the subject out of the newest version; answer what this erasure did since a table version."""

    def erase_history(self, dataset: Dataset, subject: str, erasure: str) -> None:
        """Take the subject out of all versions before it."""

    def holders(self, dataset: Dataset, subject: str) -> int:
        """How many files in the table's folder hold the subject."""

    def row_counts(self, dataset: Dataset, table_versions: Collection[int]) -> Mapping[int, int]:
        """How many rows the table has at each of these versions."""


class PredictionLog(Protocol):
    """What the inference service keeps of requests."""

    async def erase(self, erasure: str, dataset: str, subject: str) -> int:
        """Remove the subject's predictions by models of the dataset.

        Answers how many it has been for this erasure, however often it is asked.
        Raises Unavailable PREDICTION_LOG_UNAVAILABLE.
        """


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A rejection as it is kept, and what became of it. `size`: bytes of key, payload and headers."""

    size: int
    reject_time: datetime
    rejection: Rejection
    state: State = State.PENDING
    resolve_time: datetime | None = None
    discard_reason: str = ""


class Repository(Protocol):
    """Datasets, versions and rejected events, within one transaction."""

    async def insert_dataset(self, dataset: Dataset) -> bool:
        """Answer whether it was inserted: False where the name exists, or its topic is another's."""

    async def update_dataset(self, dataset: Dataset, expected: Dataset) -> bool:
        """Answer whether it was updated.

        False where it changed since `expected` was read, or its topic is another's.
        """

    async def insert_version(self, version: DatasetVersion) -> bool:
        """Answer whether it was inserted: False where the number is taken, or rows were erased meanwhile."""

    async def insert_profile(self, dataset: str, version: int, profile: Profile) -> None:
        """Store what the version's rows look like."""

    async def put_tag(self, dataset: str, tag: str, version: int, *, force: bool) -> int | None:
        """Name the version so, and answer which one has the tag now: another where it was not moved, none
        where it was forgotten meanwhile."""

    async def delete_tag(self, dataset: str, tag: str) -> bool:
        """Answer whether the tag was there."""

    async def set_pinned(self, dataset: str, version: int, *, pinned: bool) -> None:
        """Keep the version's rows whatever retention says, or no longer; nothing where it was forgotten."""

    async def expire_versions(
        self, dataset: str, cut_before: datetime, time: datetime, limit: int
    ) -> Sequence[int]:
        """Forget so many of the versions that were cut before a moment, oldest first; answer which.

        Never the newest one, and none that is tagged or pinned.
        """

    async def expire_rejected(
        self, dataset: str, after: int, last: int, before: datetime
    ) -> Mapping[State, int]:
        """Remove entries with ids above `after` and up to `last` that were done with before a moment; answer
        how many, by state.

        Their events are known to be rejected all the same.
        """

    async def hold_schema_versions(self, names: Collection[str]) -> Mapping[str, int]:
        """The datasets' schema versions, which stay so until the transaction ends; 0 where there is none."""

    async def insert_rejected(
        self, rejections: Sequence[Rejection], reject_time: datetime
    ) -> Sequence[Rejection]:
        """Store those that are not there yet, and return them as they are kept.

        The copy of a replay whose rejection is there is there.
        """

    async def keep_claims(self, paths: Mapping[int, str]) -> None:
        """Say of entries where their events' payloads lie."""

    async def mark_claims_erased(self, ids: Sequence[int]) -> None:
        """Say of these entries that their payloads are to be removed, as they were emptied themselves."""

    async def forget_claims(self, ids: Sequence[int]) -> None:
        """These entries' payloads are removed."""

    async def publish_version(self, dataset: Dataset, version: DatasetVersion, table_uri: str) -> None:
        """Queue DatasetVersionCommitted."""

    async def lock_pending(self, ids: Sequence[int]) -> Sequence[Rejection]:
        """Those of the entries that are PENDING, oldest first; they stay so until the transaction ends."""

    async def resolve_rejected(
        self, ids: Sequence[int], state: State, time: datetime, discard_reason: str = ""
    ) -> Collection[int]:
        """Bring those of the entries that are PENDING to a state; return which they were."""

    async def resolutions(self, ids: Sequence[int]) -> Mapping[int, Resolution]:
        """What became of those of the entries that exist."""

    async def publish_replays(self, replays: Sequence[Replay]) -> None:
        """Queue them for the samples topic, as they are."""

    async def insert_erasure(self, erasure: Erasure) -> None:
        """Store a request."""

    async def update_erasure(self, erasure: Erasure) -> None:
        """Store how far it has come."""

    async def note_problem(self, erasure: str, problem: str) -> None:
        """Store why an attempt did not end it."""

    async def erase_rejected(self, ids: Sequence[int], time: datetime) -> None:
        """Empty these entries of what their producers wrote. Those that wait do not any more."""

    async def update_erased(self, version: DatasetVersion) -> None:
        """Say of a version how many of its rows are not there any more, and how the others are split."""

    async def replace_profile(self, dataset: str, version: int, profile: Profile) -> None:
        """Store what the rows look like that a version has now."""

    async def publish_erased(self, erasure: Erasure) -> None:
        """Queue SubjectErased."""

    async def begin_episode(self, episode: Episode) -> bool:
        """Answer whether it began: False where the dataset has an open one."""

    async def end_episode(self, episode: Episode, time: datetime) -> bool:
        """Answer whether it ended: False where it had already."""

    async def publish_exceeded(
        self, episode: Episode, dataset: Dataset, share: RejectShare, *, cut_held: bool
    ) -> None:
        """Queue RejectShareExceeded."""

    async def publish_recovered(
        self, episode: Episode, dataset: Dataset, share: RejectShare, time: datetime
    ) -> None:
        """Queue RejectShareRecovered."""


class RejectedEvents(Protocol):
    """Tells others of rejected events."""

    def encode(self, rejections: Sequence[Rejection], reject_time: datetime) -> Sequence[Encoded]:
        """Write SampleRejected for each, an entry's always with one event id. Pure computation."""

    async def publish(self, events: Sequence[Encoded]) -> None:
        """Publish what was written, until the broker has all."""


class Catalogue(Protocol):
    """Reads of what is committed, and the way to change it."""

    def transaction(self) -> AbstractAsyncContextManager[Repository]:
        """Everything done on the repository, or nothing."""

    async def now(self) -> datetime:
        """What the database's clock says."""

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        """Those of the names that exist."""

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """By name, beginning behind `after`."""

    async def schema_versions(self, dataset: str) -> Sequence[SchemaVersion]:
        """The schemas that a dataset had, newest first. Those of before they were kept are not known."""

    async def schemas(self, names: Collection[SchemaName]) -> Mapping[SchemaName, Schema]:
        """Those of the versions of schemas that are known."""

    async def feeds(self) -> Sequence[Feed]:
        """The topics that datasets name as theirs."""

    async def self_cutting_datasets(self) -> Sequence[Dataset]:
        """Those whose versions are cut by themselves."""

    async def retaining_datasets(self) -> Sequence[Dataset]:
        """Those that keep something for a time only."""

    async def last_version(self, dataset: str) -> DatasetVersion | None:
        """The newest version."""

    async def version(self, dataset: str, number: int) -> DatasetVersion | None:
        """That version."""

    async def tagged_version(self, dataset: str, tag: str) -> DatasetVersion | None:
        """The version that the tag names."""

    async def pinned_versions(self, dataset: str) -> Sequence[DatasetVersion]:
        """Those whose rows must stay, oldest first."""

    async def profile(self, dataset: str, version: int) -> Profile | None:
        """What the version's rows look like; None where it was cut before profiles were made."""

    async def list_versions(self, dataset: str, before: int | None, limit: int) -> Sequence[DatasetVersion]:
        """Newest first, beginning below `before`."""

    async def table_versions(self, dataset: str, expired_before: datetime) -> Sequence[int]:
        """The table versions that the dataset's versions stand on, ascending; without those of versions that
        were forgotten up to then."""

    async def holds_personal_data(self) -> bool:
        """Whether some dataset has a personal field."""

    async def rejected_places(self, spans: Sequence[Span]) -> Mapping[Place, int]:
        """The events in the spans that were rejected already: where they begin, and the offset behind them.

        That is the next one but for a record batch that could not be read, which may begin before a span.
        """

    async def rejected_at(self, cluster: str, places: Collection[Place]) -> Sequence[RejectedRow]:
        """The entries of the events at those places, oldest first."""

    async def rejected_count(self, dataset: str) -> int:
        """How many events of the dataset were rejected."""

    async def rejected_page(self, dataset: str, after: int, limit: int) -> RejectedPage | None:
        """The next so many entries of the dataset with ids above `after`; None where there is none."""

    async def list_rejected(
        self, wanted: RejectedFilter, before: int | None, limit: int, max_bytes: int
    ) -> Sequence[RejectedRow]:
        """Newest first, beginning below the id `before`.

        They end with the first one, but at least the second, that makes them larger than `max_bytes`.
        """

    async def rejected(self, entry: int) -> RejectedRow | None:
        """The entry of that id."""

    async def last_rejected(self) -> int:
        """The newest entry's id; 0 where there is none."""

    async def rejected_sizes(self, ids: Sequence[int]) -> Mapping[int, int]:
        """Bytes of key, payload and headers of those of the entries that exist, oldest first."""

    async def pending_sizes(
        self, wanted: RejectedFilter, after: int, last: int, limit: int, *, batches: bool
    ) -> Mapping[int, int]:
        """The same of PENDING entries with ids above `after` and up to `last`.

        `batches`: record batches that cannot be read are among them.
        """

    async def pending_count(self, dataset: str, since: datetime, at_most: int) -> int:
        """How many of the events that were rejected since then wait, counted no further than `at_most`."""

    async def pending_counts(self, until: datetime) -> Sequence[PendingCount]:
        """Datasets with events that were rejected in the window that ends then, or for which a cut may be
        held, or with an open episode."""

    async def erasure(self, erasure: str) -> Erasure | None:
        """The erasure of that id."""

    async def open_erasures(self) -> Sequence[Erasure]:
        """Those that are not done, oldest first."""

    async def list_erasures(self, dataset: str, limit: int) -> Sequence[Erasure]:
        """A dataset's, newest first."""

    async def claims_of(self, ids: Sequence[int]) -> Mapping[int, str]:
        """Where those of the entries that have a payload elsewhere have it."""

    async def claims_in_use(self, since: datetime) -> Collection[str]:
        """Where payloads lie of entries that wait, or were resolved after that moment."""

    async def erased_claims(self) -> Mapping[int, str]:
        """The payloads that are to be removed, by entry."""

    async def erasable_rejected(self, dataset: str, after: int, limit: int) -> Sequence[Rejection]:
        """Entries that may be about a subject of the dataset, with ids above `after`, oldest first."""

    async def open_episode(self, dataset: str) -> Episode | None:
        """The dataset's episode that has not ended."""
