"""Datasets, versions and rejected events in PostgreSQL."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import quality_pb2
from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion import translation
from headrace.ingestion.domain.content_hash import from_hex, to_hex
from headrace.ingestion.domain.dataset import (
    Dataset,
    DatasetVersion,
    SourceOffset,
    SourcePartition,
)
from headrace.ingestion.domain.erasure import Erasure, ErasureState
from headrace.ingestion.domain.evolution import SchemaVersion
from headrace.ingestion.domain.profile import Profile
from headrace.ingestion.domain.quality import QualityRule, VersionVerdict
from headrace.ingestion.domain.rejection import Reason, Rejection, State, Verdict
from headrace.ingestion.domain.rejects import Episode, Rejects, RejectShare
from headrace.ingestion.domain.replay import Replay, origin_of
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import DATASET_PATTERN, Cut, Schema
from headrace.ingestion.domain.source_topic import Feed, SourceFormat, SourceTopic
from headrace.ingestion.domain.split_counts import SplitCounts
from headrace.ingestion.erasure_translation import erasure_to_message
from headrace.ingestion.quality_translation import (
    finding_from_message,
    finding_to_message,
    rule_from_message,
    rule_to_message,
)
from headrace.ingestion.split_translation import (
    split_counts_from_message,
    split_counts_to_message,
    split_from_message,
    split_to_message,
)
from headrace.ingestion.storage.profile_rows import field_profile, profile_columns
from headrace.ingestion.use_cases.ports import (
    PendingCount,
    Place,
    RejectedFilter,
    RejectedPage,
    RejectedRow,
    Repository,
    Resolution,
    SchemaName,
    Span,
)
from headrace.messaging import topics
from headrace.messaging.events import protobuf_event
from headrace.postgres import Connection, Pool, outbox, transaction
from headrace.postgres.queries import Queries, load_queries
from headrace.rpc.convert import to_duration, to_timestamp
from headrace.runtime.ids import new_id
from headrace.splits import Shares

SOURCE: Final = "headrace/ingestion"
VERSION_COMMITTED: Final = "headrace.ingestion.dataset-version-committed.v1"
REJECT_SHARE_EXCEEDED: Final = "headrace.ingestion.reject-share-exceeded.v1"
SUBJECT_ERASED: Final = "headrace.ingestion.subject-erased.v1"
REJECT_SHARE_RECOVERED: Final = "headrace.ingestion.reject-share-recovered.v1"


class PostgresCatalogue:
    """Reads of what is committed, each its own statement, and transactions to change it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = load_queries("headrace.ingestion.storage")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Repository]:
        """Everything done on the repository, or nothing."""
        async with transaction(self._pool) as connection:
            yield PostgresRepository(connection, self._queries)

    async def datasets(self, names: Collection[str]) -> Mapping[str, Dataset]:
        """Those of the names that exist."""
        # A name may be whatever somebody wrote into an event, and not all of that can be asked for.
        asked = [name for name in names if DATASET_PATTERN.match(name)]
        if not asked:
            return {}
        rows = await self._pool.fetch(self._queries["datasets_by_name"], asked)
        return {row["name"]: _dataset(row) for row in rows}

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """By name, beginning behind `after`."""
        return [_dataset(row) for row in await self._pool.fetch(self._queries["list_datasets"], after, limit)]

    async def schema_versions(self, dataset: str) -> Sequence[SchemaVersion]:
        """The schemas that a dataset had, newest first. Those of before they were kept are not known."""
        rows = await self._pool.fetch(self._queries["schema_history"], dataset)
        return [SchemaVersion(row["version"], _schema(row["schema"]), row["create_time"]) for row in rows]

    async def schemas(self, names: Collection[SchemaName]) -> Mapping[SchemaName, Schema]:
        """Those of the versions of schemas that are known."""
        asked = [(dataset, version) for dataset, version in names if DATASET_PATTERN.match(dataset)]
        if not asked:
            return {}
        rows = await self._pool.fetch(self._queries["schemas_by_name"], *zip(*asked, strict=True))
        return {(row["dataset"], row["version"]): _schema(row["schema"]) for row in rows}

    async def feeds(self) -> Sequence[Feed]:
        """The topics that datasets name as theirs."""
        return [Feed(row["name"], _source(row)) for row in await self._pool.fetch(self._queries["feeds"])]

    async def self_cutting_datasets(self) -> Sequence[Dataset]:
        """Those whose versions are cut by themselves."""
        return [_dataset(row) for row in await self._pool.fetch(self._queries["self_cutting_datasets"])]

    async def retaining_datasets(self) -> Sequence[Dataset]:
        """Those that keep something for a time only."""
        return [_dataset(row) for row in await self._pool.fetch(self._queries["retaining_datasets"])]

    async def last_version(self, dataset: str) -> DatasetVersion | None:
        """The newest version."""
        row = await self._pool.fetchrow(self._queries["last_version"], dataset)
        return _version(row) if row else None

    async def version(self, dataset: str, number: int) -> DatasetVersion | None:
        """That version."""
        row = await self._pool.fetchrow(self._queries["version"], dataset, number)
        return _version(row) if row else None

    async def tagged_version(self, dataset: str, tag: str) -> DatasetVersion | None:
        """The version that the tag names."""
        row = await self._pool.fetchrow(self._queries["tagged_version"], dataset, tag)
        return _version(row) if row else None

    async def pinned_versions(self, dataset: str) -> Sequence[DatasetVersion]:
        """Those whose rows must stay, oldest first."""
        return [_version(row) for row in await self._pool.fetch(self._queries["pinned_versions"], dataset)]

    async def profile(self, dataset: str, version: int) -> Profile | None:
        """What the version's rows look like; None where it was cut before profiles were made."""
        rows = await self._pool.fetch(self._queries["profile"], dataset, version)
        return Profile(rows[0]["row_count"], tuple(map(field_profile, rows))) if rows else None

    async def list_versions(self, dataset: str, before: int | None, limit: int) -> Sequence[DatasetVersion]:
        """Newest first, beginning below `before`."""
        rows = await self._pool.fetch(self._queries["list_versions"], dataset, before, limit)
        return [_version(row) for row in rows]

    async def table_versions(self, dataset: str, expired_before: datetime) -> Sequence[int]:
        """The table versions that the dataset's versions stand on, ascending; without those of versions that
        were forgotten up to then."""
        rows = await self._pool.fetch(self._queries["table_versions"], dataset, expired_before)
        return [row["table_version"] for row in rows]

    async def now(self) -> datetime:
        """What the database's clock says."""
        moment: datetime = await self._pool.fetchval(self._queries["now"])
        return moment

    async def holds_personal_data(self) -> bool:
        """Whether some dataset has a personal field."""
        found: bool = await self._pool.fetchval(self._queries["holds_personal_data"])
        return found

    async def rejected_places(self, spans: Sequence[Span]) -> Mapping[Place, int]:
        """The events in the spans that were rejected already: where they begin, and the offset behind them.

        That is the next one but for a record batch that could not be read, which may begin before a span.
        """
        rows = await self._pool.fetch(
            self._queries["rejected_places"],
            [span.source.cluster for span in spans],
            [span.source.topic for span in spans],
            [span.source.partition for span in spans],
            [span.start for span in spans],
            [span.end for span in spans],
        )
        return {(row["topic"], row["partition"], row["offset"]): row["next_offset"] for row in rows}

    async def rejected_at(self, cluster: str, places: Collection[Place]) -> Sequence[RejectedRow]:
        """The entries of the events at those places, oldest first."""
        columns = zip(*places, strict=True)
        rows = await self._pool.fetch(self._queries["rejected_at"], cluster, *columns)
        return [_rejected_row(row) for row in rows]

    async def rejected_count(self, dataset: str) -> int:
        """How many events of the dataset were rejected."""
        count: int = await self._pool.fetchval(self._queries["rejected_count"], dataset)
        return count

    async def rejected_page(self, dataset: str, after: int, limit: int) -> RejectedPage | None:
        """The next so many entries of the dataset with ids above `after`; None where there is none."""
        row = await self._pool.fetchrow(self._queries["rejected_page"], dataset, after, limit)
        return RejectedPage(row["last"], row["newest"]) if row and row["last"] is not None else None

    async def list_rejected(
        self, wanted: RejectedFilter, before: int | None, limit: int, max_bytes: int
    ) -> Sequence[RejectedRow]:
        """Newest first, beginning below the id `before`.

        They end with the first one, but at least the second, that makes them larger than `max_bytes`.
        """
        rows = await self._pool.fetch(
            self._queries["list_rejected"],
            *_wanted(wanted),
            wanted.state.value if wanted.state else None,
            before,
            limit,
            max_bytes,
        )
        return [_rejected_row(row) for row in rows]

    async def rejected(self, entry: int) -> RejectedRow | None:
        """The entry of that id."""
        row = await self._pool.fetchrow(self._queries["rejected"], entry)
        return _rejected_row(row) if row else None

    async def last_rejected(self) -> int:
        """The newest entry's id; 0 where there is none."""
        last: int = await self._pool.fetchval(self._queries["last_rejected"])
        return last

    async def rejected_sizes(self, ids: Sequence[int]) -> Mapping[int, int]:
        """Bytes of key, payload and headers of those of the entries that exist, oldest first."""
        rows = await self._pool.fetch(self._queries["rejected_sizes"], ids)
        return {row["sequence"]: row["size"] for row in rows}

    async def pending_sizes(
        self, wanted: RejectedFilter, after: int, last: int, limit: int, *, batches: bool
    ) -> Mapping[int, int]:
        """The same of PENDING entries with ids above `after` and up to `last`.

        `batches`: record batches that cannot be read are among them.
        """
        rows = await self._pool.fetch(
            self._queries["pending_sizes"], *_wanted(wanted), after, last, limit, batches
        )
        return {row["sequence"]: row["size"] for row in rows}

    async def pending_count(self, dataset: str, since: datetime, at_most: int) -> int:
        """How many of the events that were rejected since then wait, counted no further than `at_most`."""
        count: int = await self._pool.fetchval(self._queries["pending_count"], dataset, since, at_most)
        return count

    async def pending_counts(self, until: datetime) -> Sequence[PendingCount]:
        """Datasets with events that were rejected in the window that ends then, or for which a cut may be
        held, or with an open episode."""
        return [
            PendingCount(
                _dataset(row),
                row["rejected"],
                Episode(row["episode"], row["name"], row["begin_time"]) if row["episode"] else None,
            )
            for row in await self._pool.fetch(self._queries["pending_counts"], until)
        ]

    async def erasure(self, erasure: str) -> Erasure | None:
        """The erasure of that id."""
        row = await self._pool.fetchrow(self._queries["erasure"], erasure)
        return _erasure(row) if row else None

    async def open_erasures(self) -> Sequence[Erasure]:
        """Those that are not done, oldest first."""
        return [_erasure(row) for row in await self._pool.fetch(self._queries["open_erasures"])]

    async def list_erasures(self, dataset: str, limit: int) -> Sequence[Erasure]:
        """A dataset's, newest first."""
        return [
            _erasure(row) for row in await self._pool.fetch(self._queries["list_erasures"], dataset, limit)
        ]

    async def claims_of(self, ids: Sequence[int]) -> Mapping[int, str]:
        """Where those of the entries that have a payload elsewhere have it."""
        rows = await self._pool.fetch(self._queries["claims_of"], ids)
        return {row["sequence"]: row["path"] for row in rows}

    async def claims_in_use(self, since: datetime) -> Collection[str]:
        """Where payloads lie of entries that wait, or were resolved after that moment."""
        return {row["path"] for row in await self._pool.fetch(self._queries["claims_in_use"], since)}

    async def erased_claims(self) -> Mapping[int, str]:
        """The payloads that are to be removed, by entry."""
        rows = await self._pool.fetch(self._queries["erased_claims"])
        return {row["sequence"]: row["path"] for row in rows}

    async def erasable_rejected(self, dataset: str, after: int, limit: int) -> Sequence[Rejection]:
        """Entries that may be about a subject of the dataset, with ids above `after`, oldest first."""
        rows = await self._pool.fetch(self._queries["erasable_rejected"], dataset, after, limit)
        return [_rejection(row) for row in rows]

    async def open_episode(self, dataset: str) -> Episode | None:
        """The dataset's episode that has not ended."""
        row = await self._pool.fetchrow(self._queries["open_episode"], dataset)
        return Episode(row["id"], row["dataset"], row["begin_time"]) if row else None


class PostgresRepository:
    """Changes within one transaction."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries

    async def insert_dataset(self, dataset: Dataset) -> bool:
        """Answer whether it was inserted: False where the name exists, or its topic is another's."""
        await self._connection.execute(self._queries["lock_schema"], dataset.name)
        await self._lock_source(dataset.source)
        inserted = await self._connection.fetchval(
            self._queries["insert_dataset"],
            dataset.name,
            _schema_json(dataset.schema),
            dataset.schema_version,
            dataset.cut.rows,
            dataset.cut.seconds,
            _rejects_json(dataset.rejects),
            dataset.create_time,
            dataset.update_time,
            _quality_json(dataset.quality),
            dataset.values_changed,
            _split_json(dataset.split),
            _retention_json(dataset.retention),
            dataset.source.topic if dataset.source else None,
            dataset.source.format.value if dataset.source else None,
            dataset.cut.schedule,
            dataset.declared_version,
        )
        if inserted is not None:
            await self._insert_schema(dataset)
        return inserted is not None

    async def update_dataset(self, dataset: Dataset, expected: Dataset) -> bool:
        """Answer whether it was updated.

        False where it changed since `expected` was read, or its topic is another's.
        """
        await self._connection.execute(self._queries["lock_schema"], dataset.name)
        await self._lock_source(dataset.source)
        updated = await self._connection.fetchval(
            self._queries["update_dataset"],
            dataset.name,
            _schema_json(dataset.schema),
            dataset.schema_version,
            dataset.cut.rows,
            dataset.cut.seconds,
            _rejects_json(dataset.rejects),
            dataset.update_time,
            expected.update_time,
            _quality_json(dataset.quality),
            dataset.values_changed,
            _split_json(dataset.split),
            _retention_json(dataset.retention),
            dataset.source.topic if dataset.source else None,
            dataset.source.format.value if dataset.source else None,
            dataset.cut.schedule,
            dataset.declared_version,
        )
        if updated is not None:
            await self._insert_schema(dataset)
        return updated is not None

    async def _insert_schema(self, dataset: Dataset) -> None:
        await self._connection.execute(
            self._queries["insert_schema"],
            dataset.name,
            dataset.schema_version,
            _schema_json(dataset.schema),
            dataset.update_time,
        )

    async def _lock_source(self, source: SourceTopic | None) -> None:
        if source is not None:
            await self._connection.execute(self._queries["lock_source"], source.topic)

    async def insert_version(self, version: DatasetVersion) -> bool:
        """Answer whether it was inserted: False where the number is taken, or rows were erased meanwhile."""
        # By itself: what was erased until it is held must be seen by the next statement.
        await self._connection.execute(self._queries["hold_versions"], version.dataset)
        inserted = await self._connection.fetchval(
            self._queries["insert_version"],
            version.dataset,
            version.version,
            version.table_version,
            version.schema_version,
            version.row_count,
            to_hex(version.content_hash),
            [[o.source.cluster, o.source.topic, o.source.partition, o.next_offset] for o in version.sources],
            version.traceparent,
            version.create_time,
            version.verdict,
            [_message_json(finding_to_message(finding)) for finding in version.findings],
            _split_counts_json(version.split_counts),
        )
        return inserted is not None

    async def insert_profile(self, dataset: str, version: int, profile: Profile) -> None:
        """Store what the version's rows look like."""
        await self._connection.execute(
            self._queries["insert_profile"], dataset, version, *profile_columns(profile)
        )

    async def put_tag(self, dataset: str, tag: str, version: int, *, force: bool) -> int | None:
        """Name the version so, and answer which one has the tag now: another where it was not moved, none
        where it was forgotten meanwhile."""
        await self._connection.execute(self._queries["hold_versions"], dataset)
        holder: int | None = await self._connection.fetchval(
            self._queries["put_tag"], dataset, tag, version, force
        )
        return holder

    async def delete_tag(self, dataset: str, tag: str) -> bool:
        """Answer whether the tag was there."""
        return await self._connection.fetchval(self._queries["delete_tag"], dataset, tag) is not None

    async def set_pinned(self, dataset: str, version: int, *, pinned: bool) -> None:
        """Keep the version's rows whatever retention says, or no longer; nothing where it was forgotten."""
        await self._connection.execute(self._queries["hold_versions"], dataset)
        await self._connection.execute(self._queries["set_pinned"], dataset, version, pinned)

    async def expire_versions(
        self, dataset: str, cut_before: datetime, time: datetime, limit: int
    ) -> Sequence[int]:
        """Forget so many of the versions that were cut before a moment, oldest first; answer which."""
        # By itself: what was tagged or pinned until it is held must be seen by the next statement.
        await self._connection.execute(self._queries["hold_versions"], dataset)
        rows = await self._connection.fetch(
            self._queries["expire_versions"], dataset, cut_before, time, limit
        )
        versions = sorted(row["version"] for row in rows)
        await self._connection.execute(self._queries["delete_profiles"], dataset, versions)
        return versions

    async def expire_rejected(
        self, dataset: str, after: int, last: int, before: datetime
    ) -> Mapping[State, int]:
        """Remove entries with ids above `after` and up to `last` that were done with before a moment; answer
        how many, by state."""
        # Nobody stores rejections meanwhile: who does knows of all that were removed before.
        await self._connection.execute(self._queries["lock_schema"], dataset)
        rows = await self._connection.fetch(self._queries["expire_rejected"], dataset, after, last, before)
        return {State(row["state"]): row["count"] for row in rows}

    async def hold_schema_versions(self, names: Collection[str]) -> Mapping[str, int]:
        """The datasets' schema versions, which stay so until the transaction ends; 0 where there is none."""
        versions = dict.fromkeys(names, 0)
        # No dataset has another name, ever.
        possible = [name for name in names if DATASET_PATTERN.match(name)]
        if possible:
            await self._connection.execute(self._queries["hold_schemas"], possible)
            versions |= dict(await self._connection.fetch(self._queries["schema_versions"], possible))
        return versions

    async def insert_rejected(
        self, rejections: Sequence[Rejection], reject_time: datetime
    ) -> Sequence[Rejection]:
        """Store those that are not there yet, and return them, with what they got."""
        inserted = await self._connection.fetch(
            self._queries["insert_rejected"],
            [r.cluster for r in rejections],
            [r.topic for r in rejections],
            [r.partition for r in rejections],
            [r.offset for r in rejections],
            [_text(r.dataset) for r in rejections],
            [_text(r.event_id) for r in rejections],
            [_text(r.traceparent) for r in rejections],
            [r.verdict.reason.value for r in rejections],
            [_text(r.verdict.field) for r in rejections],
            [r.verdict.rule for r in rejections],
            [_text(r.verdict.message) for r in rejections],
            [r.key for r in rejections],
            [r.payload for r in rejections],
            [_headers_json(r.headers) for r in rejections],
            reject_time,
            [origin_of(r.headers) for r in rejections],
            [r.sealed_by for r in rejections],
            [r.next_offset or None for r in rejections],
        )
        given = {(r.topic, r.partition, r.offset): r for r in rejections}
        new = []
        for entry, topic, partition, offset, origin in inserted:
            rejection = given[topic, partition, offset]
            rejection.id, rejection.replay_of = entry, origin or 0
            new.append(rejection)
        return new

    async def keep_claims(self, paths: Mapping[int, str]) -> None:
        """Say of entries where their events' payloads lie."""
        await self._connection.execute(self._queries["keep_claims"], [*paths], [*paths.values()])

    async def mark_claims_erased(self, ids: Sequence[int]) -> None:
        """Say of these entries that their payloads are to be removed, as they were emptied themselves."""
        await self._connection.execute(self._queries["mark_claims_erased"], ids)

    async def forget_claims(self, ids: Sequence[int]) -> None:
        """These entries' payloads are removed."""
        await self._connection.execute(self._queries["forget_claims"], ids)

    async def publish_version(self, dataset: Dataset, version: DatasetVersion, table_uri: str) -> None:
        """Queue DatasetVersionCommitted."""
        event = protobuf_event(
            events_pb2.DatasetVersionCommitted(
                dataset_version=translation.version_to_message(version, table_uri),
                schema=translation.schema_to_message(dataset.schema),
            ),
            type=VERSION_COMMITTED,
            source=SOURCE,
            subject=dataset.name,
            id=new_id(),
            time=version.create_time,
        )
        await outbox.enqueue(self._connection, topics.DATASET_VERSIONS, dataset.name, event)

    async def lock_pending(self, ids: Sequence[int]) -> Sequence[Rejection]:
        """Those of the entries that are PENDING, oldest first; they stay so until the transaction ends."""
        rows = await self._connection.fetch(self._queries["lock_pending"], ids)
        return [_rejection(row) for row in rows]

    async def resolve_rejected(
        self, ids: Sequence[int], state: State, time: datetime, discard_reason: str = ""
    ) -> Collection[int]:
        """Bring those of the entries that are PENDING to a state; return which they were."""
        rows = await self._connection.fetch(
            self._queries["resolve_rejected"], ids, state.value, time, _text(discard_reason)
        )
        return {row["sequence"] for row in rows}

    async def resolutions(self, ids: Sequence[int]) -> Mapping[int, Resolution]:
        """What became of those of the entries that exist."""
        rows = await self._connection.fetch(self._queries["resolutions"], ids)
        return {row["sequence"]: Resolution(State(row["state"]), row["resolve_time"]) for row in rows}

    async def publish_replays(self, replays: Sequence[Replay]) -> None:
        """Queue them for the samples topic, as they are."""
        records = [(replay.key, list(replay.headers), replay.payload) for replay in replays]
        await outbox.enqueue_records(self._connection, topics.SAMPLES, records)

    async def insert_erasure(self, erasure: Erasure) -> None:
        """Store a request."""
        await self._connection.execute(
            self._queries["insert_erasure"],
            erasure.id,
            erasure.dataset,
            erasure.subject,
            erasure.sealed_by,
            erasure.create_time,
            erasure.state.value,
            erasure.begin_version,
            erasure.table_version,
            erasure.row_count,
            erasure.rejected_count,
            erasure.versions,
            erasure.end_time,
            erasure.problem,
            erasure.prediction_count,
        )

    async def update_erasure(self, erasure: Erasure) -> None:
        """Store how far it has come. Versions that are being cut are there when this is."""
        await self._connection.execute(self._queries["hold_versions"], erasure.dataset)
        await self._connection.execute(
            self._queries["update_erasure"],
            erasure.id,
            erasure.subject,
            erasure.sealed_by,
            erasure.state.value,
            erasure.begin_version,
            erasure.table_version,
            erasure.row_count,
            erasure.rejected_count,
            erasure.versions,
            erasure.end_time,
            erasure.problem,
            erasure.prediction_count,
        )

    async def note_problem(self, erasure: str, problem: str) -> None:
        """Store why an attempt did not end it."""
        await self._connection.execute(self._queries["note_problem"], erasure, problem)

    async def erase_rejected(self, ids: Sequence[int], time: datetime) -> None:
        """Empty these entries of what their producers wrote. Those that wait do not any more."""
        await self._connection.execute(self._queries["erase_rejected"], ids, time)

    async def update_erased(self, version: DatasetVersion) -> None:
        """Say of a version how many of its rows are not there any more, and how the others are split."""
        await self._connection.execute(
            self._queries["update_erased"],
            version.dataset,
            version.version,
            version.erased_rows,
            _split_counts_json(version.split_counts),
        )

    async def replace_profile(self, dataset: str, version: int, profile: Profile) -> None:
        """Store what the rows look like that a version has now."""
        await self._connection.execute(self._queries["delete_profile"], dataset, version)
        await self.insert_profile(dataset, version, profile)

    async def publish_erased(self, erasure: Erasure) -> None:
        """Queue SubjectErased; the erasure is done."""
        assert erasure.end_time is not None
        event = protobuf_event(
            events_pb2.SubjectErased(erasure=erasure_to_message(erasure)),
            type=SUBJECT_ERASED,
            source=SOURCE,
            subject=erasure.dataset,
            id=erasure.id,
            time=erasure.end_time,
        )
        await outbox.enqueue(self._connection, topics.ERASURES, erasure.dataset, event)

    async def begin_episode(self, episode: Episode) -> bool:
        """Answer whether it began: False where the dataset has an open one."""
        begun = await self._connection.fetchval(
            self._queries["begin_episode"], episode.id, episode.dataset, episode.begin_time
        )
        return begun is not None

    async def end_episode(self, episode: Episode, time: datetime) -> bool:
        """Answer whether it ended: False where it had already."""
        ended = await self._connection.fetchval(self._queries["end_episode"], episode.id, time)
        return ended is not None

    async def publish_exceeded(
        self, episode: Episode, dataset: Dataset, share: RejectShare, *, cut_held: bool
    ) -> None:
        """Queue RejectShareExceeded."""
        message = events_pb2.RejectShareExceeded(
            dataset=dataset.name,
            episode=episode.id,
            reject_share=_share_message(share, dataset.rejects),
            begin_time=to_timestamp(episode.begin_time),
            cut_held=cut_held,
        )
        await self._publish_alert(message, REJECT_SHARE_EXCEEDED, dataset, episode.begin_time)

    async def publish_recovered(
        self, episode: Episode, dataset: Dataset, share: RejectShare, time: datetime
    ) -> None:
        """Queue RejectShareRecovered."""
        message = events_pb2.RejectShareRecovered(
            dataset=dataset.name,
            episode=episode.id,
            reject_share=_share_message(share, dataset.rejects),
            begin_time=to_timestamp(episode.begin_time),
            end_time=to_timestamp(time),
        )
        await self._publish_alert(message, REJECT_SHARE_RECOVERED, dataset, time)

    async def _publish_alert(self, message: Message, kind: str, dataset: Dataset, time: datetime) -> None:
        event = protobuf_event(
            message, type=kind, source=SOURCE, subject=dataset.name, id=new_id(), time=time
        )
        await outbox.enqueue(self._connection, topics.INGESTION_ALERTS, dataset.name, event)


def _schema_json(schema: Schema) -> dict[str, object]:
    return _message_json(translation.schema_to_message(schema))


def _schema(document: dict[str, object]) -> Schema:
    return translation.schema_from_message(json_format.ParseDict(document, api.Schema()))


def _quality_json(rules: Sequence[QualityRule]) -> list[dict[str, object]]:
    return [_message_json(rule_to_message(rule)) for rule in rules]


def _split_json(split: Shares | None) -> dict[str, object] | None:
    return _message_json(split_to_message(split)) if split else None


def _split_counts_json(counts: SplitCounts | None) -> dict[str, object] | None:
    return _message_json(split_counts_to_message(counts)) if counts else None


def _message_json(message: Message) -> dict[str, object]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _wanted(wanted: RejectedFilter) -> tuple[str | None, str | None]:
    """Dataset and reason as they can be asked for: either may be whatever somebody wrote."""
    dataset, reason = (text if text is None else _text(text) for text in (wanted.dataset, wanted.reason))
    return dataset, reason


def _retention_json(retention: Retention) -> dict[str, float]:
    ages = {"rows": retention.rows, "versions": retention.versions, "rejected": retention.rejected}
    return {name: age.total_seconds() for name, age in ages.items() if age is not None}


def _retention(document: Mapping[str, float]) -> Retention:
    return Retention(**{name: timedelta(seconds=seconds) for name, seconds in document.items()})


def _share_message(share: RejectShare, rejects: Rejects) -> events_pb2.RejectShare:
    return events_pb2.RejectShare(
        share=share.share,
        rejected_count=share.rejected,
        stored_count=share.stored,
        alert_share=rejects.alert_share,
        window=to_duration(rejects.window),
    )


def _rejects_json(rejects: Rejects) -> dict[str, object]:
    return {
        "alert_share": rejects.alert_share,
        "window_seconds": rejects.window.total_seconds(),
        "hold_cut": rejects.hold_cut,
    }


def _rejects(document: Mapping[str, float]) -> Rejects:
    return Rejects(
        document["alert_share"], timedelta(seconds=document["window_seconds"]), bool(document["hold_cut"])
    )


def _dataset(row: asyncpg.Record) -> Dataset:
    return Dataset(
        name=row["name"],
        schema=_schema(row["schema"]),
        cut=Cut(row["cut_rows"], row["cut_seconds"], row["cut_schedule"]),
        schema_version=row["schema_version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        rejects=_rejects(row["rejects"]),
        quality=tuple(
            rule_from_message(json_format.ParseDict(rule, quality_pb2.QualityRule()))
            for rule in row["quality"]
        ),
        values_changed=row["values_changed"],
        split=split_from_message(json_format.ParseDict(row["split"], api.Split())) if row["split"] else None,
        retention=_retention(row["retention"]),
        source=_source(row) if row["source_topic"] else None,
        declared_version=row["declared_version"],
    )


def _source(row: asyncpg.Record) -> SourceTopic:
    return SourceTopic(row["source_topic"], SourceFormat(row["source_format"]))


def _version(row: asyncpg.Record) -> DatasetVersion:
    return DatasetVersion(
        dataset=row["dataset"],
        version=row["version"],
        table_version=row["table_version"],
        schema_version=row["schema_version"],
        row_count=row["row_count"],
        content_hash=from_hex(row["content_hash"]),
        sources=tuple(
            SourceOffset(SourcePartition(cluster, topic, partition), next_offset)
            for cluster, topic, partition, next_offset in row["sources"]
        ),
        create_time=row["create_time"],
        traceparent=row["traceparent"],
        verdict=VersionVerdict(row["verdict"]) if row["verdict"] else None,
        findings=tuple(
            finding_from_message(json_format.ParseDict(finding, quality_pb2.QualityFinding()))
            for finding in row["findings"]
        ),
        tags=tuple(row["tags"] or ()),
        pinned=row["pinned"],
        split_counts=split_counts_from_message(json_format.ParseDict(row["split_counts"], api.SplitCounts()))
        if row["split_counts"]
        else None,
        erased_rows=row["erased_rows"],
        expire_time=row["expire_time"],
    )


def _erasure(row: asyncpg.Record) -> Erasure:
    return Erasure(
        id=row["id"],
        dataset=row["dataset"],
        subject=row["subject"],
        sealed_by=row["sealed_by"],
        create_time=row["create_time"],
        state=ErasureState(row["state"]),
        begin_version=row["begin_version"],
        table_version=row["table_version"],
        row_count=row["row_count"],
        rejected_count=row["rejected_count"],
        versions=tuple(row["versions"]),
        end_time=row["end_time"],
        problem=row["problem"],
        prediction_count=row["prediction_count"],
    )


def _rejected_row(row: asyncpg.Record) -> RejectedRow:
    return RejectedRow(
        size=row["size"],
        reject_time=row["reject_time"],
        rejection=_rejection(row),
        state=State(row["state"]),
        resolve_time=row["resolve_time"],
        discard_reason=row["discard_reason"],
    )


def _rejection(row: asyncpg.Record) -> Rejection:
    return Rejection(
        cluster=row["cluster"],
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        verdict=Verdict(Reason(row["reason"]), row["message"], row["field"], row["rule"]),
        dataset=row["dataset"],
        event_id=row["event_id"],
        traceparent=row["traceparent"],
        key=row["key"],
        payload=row["payload"],
        headers=[(name, base64.b64decode(value)) for name, value in row["headers"]],
        id=row["sequence"],
        replay_of=row["replay_of"] or 0,
        sealed_by=row["sealed_by"],
        next_offset=row["next_offset"] or 0,
    )


def _headers_json(headers: Sequence[tuple[str, bytes]]) -> str:
    written = [[_text(name), base64.b64encode(value).decode()] for name, value in headers]
    return orjson.dumps(written).decode()


def _text(text: str) -> str:
    """What PostgreSQL can hold of a text that anybody may have written."""
    sound = text if text.isascii() else text.encode(errors="replace").decode()
    return sound.replace("\0", "\ufffd")
