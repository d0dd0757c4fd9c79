"""A batch of events into tables and the list of rejected events, each event exactly once.

Order matters. Rejections first, then the events about them beside the rows, then (by the caller) the offsets
in Kafka. A crash anywhere leads to the same records being read again, and then:

- an event that was rejected is known to be, and is not judged again (a schema that was widened since would
  make a row of it); the event about it may not have been published, and is published again, with its id;
- a row that was stored stands below its table's transaction version, and is left out;
- what repeats an event that was stored is found to do so again, and what was too old is older still;
- everything else is judged as if for the first time.

Two instances may have the same records for a while: one that was paused does not know yet that its
partitions went to another. Rows are fenced by the table's transaction version, and rejections by the schema
that they were judged by, which must be the one that is applied until they stand; and what was rejected is
read after the schemas were. So what became a rejection here is no row there, by a newer schema.

A version of the schema that its owner declared may take less than the one before. An event that became a row
by that one, and is read again, is no rejection: where there was such a declaration, events below the table's
transaction version are left out of the rejections, after the table was closed to writers that have not
heard of it.

Were rows stored first, a crash before the rejections would leave events that are below the table's
transaction version and yet in neither place; valid by a schema that was widened meanwhile, they would be
lost.

A record batch that cannot be read is one rejection, and no batch of events: nobody knows what is in it.

A batch whose claimed payloads do not fit into memory is stored in parts, each as if it were a batch of its
own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.retention import is_recent
from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.use_cases.agreed_time import AgreedTime
from headrace.ingestion.use_cases.deduplicate import Deduplicator, Fresh
from headrace.ingestion.use_cases.envelopes import Opened, open_envelopes
from headrace.ingestion.use_cases.fetch_claims import FetchClaims
from headrace.ingestion.use_cases.judge_apart import judge_apart
from headrace.ingestion.use_cases.judge_batch import Batch, Judge, Judged
from headrace.ingestion.use_cases.plain_events import PlainEvents
from headrace.ingestion.use_cases.ports import (
    Append,
    Catalogue,
    Place,
    RejectedEvents,
    SampleTables,
    SchemaRegistry,
    Span,
)
from headrace.ingestion.use_cases.reject_events import Kept, RejectEvents
from headrace.ingestion.use_cases.schemas import schema_versions_of, schemas_of
from headrace.ingestion.use_cases.unreadable import rejection_of
from headrace.messaging.record_columns import Unreadable
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.tasks import alongside
from headrace.telemetry import names, tracing


@dataclass(frozen=True, slots=True)
class Stored:
    """What a batch added: rows by dataset name, and the rejections that are new.

    `repeated`: events left out because they were sent before, and `expired`: because they are older than the
    dataset keeps rows, both by dataset name. `newest`: the latest event time, in seconds since the epoch, by
    the name of each dataset that got rows. `complete`: off where only the batch's first parts are stored.
    """

    rows: Mapping[str, int]
    repeated: Mapping[str, int]
    rejections: Sequence[Rejection]
    expired: Mapping[str, int] = field(default_factory=dict)
    newest: Mapping[str, float] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """The part of a batch that was judged, and what is left of it.

    `versions`: of the schemas by which events were rejected; 0 where there was none. `claims`: where the
    payloads lie that events claimed.
    """

    batch: Batch
    rest: Batch | None
    outcome: Judged
    datasets: Mapping[str, Dataset]
    versions: Mapping[str, int]
    claims: Mapping[Place, str]


@dataclass(slots=True)
class _Progress:
    """Of the batch at hand, what its parts added that are stored, and the first place that is not.

    `rest`: cluster, topic, partition and offset; None: nothing is stored.
    """

    rows: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    newest: dict[str, float] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    rest: tuple[str, str, int, int] | None = None

    def left(self, batch: Batch) -> Batch | None:
        """What is not stored of the batch; None where another one was at hand, which was given up."""
        if self.rest is None:
            return batch
        cluster, topic, partition, offset = self.rest
        records = batch.records
        begin = np.flatnonzero((records.partitions == partition) & (records.offsets == offset))
        if not len(begin) or (batch.cluster, records.topic) != (cluster, topic):
            return None
        return batch.split(int(begin[0]))[1]

    def stored(self) -> Stored:
        """What it is so far."""
        return Stored(
            dict(self.rows),
            dict(self.repeated),
            tuple(self.rejections),
            dict(self.expired),
            dict(self.newest),
            complete=self.rest is None,
        )


class StoreBatch:
    """The use case. Calling it again with the same records adds nothing."""

    def __init__(
        self,
        catalogue: Catalogue,
        tables: SampleTables,
        rejected_events: RejectedEvents,
        *,
        clock: Clock,
        max_event_bytes: int,
        deduplicate_events: int,
        registry: SchemaRegistry | None,
        claims: FetchClaims,
        keys: KeyRing = NO_KEYS,
    ) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._clock = clock
        self._agreed_time = AgreedTime(catalogue, clock)
        self._max_event_bytes = max_event_bytes
        self._registry = registry
        self._claims = claims
        self._judge = Judge(keys)
        self._reject = RejectEvents(catalogue, rejected_events, keys=keys, clock=clock)
        self._deduplicator = Deduplicator(tables, reach=deduplicate_events)
        self._progress = _Progress()

    def forget(self) -> None:
        """Others may store events of the same partitions from here on."""
        self._deduplicator.forget()
        self._progress = _Progress()

    async def __call__(self, batch: Batch) -> Stored:
        """Store the batch, or the next part of it: call again with the same one until all of it is stored.

        Raises whatever the database, the store or the registry raises: call again, too.
        """
        left = self._progress.left(batch)
        if left is None:
            self._progress, left = _Progress(), batch
        progress = self._progress
        judged = await self._judged(left)
        while (kept := await self._keep(judged)) is None:
            judged = await self._judged(left)
        # Before anything else may fail: what was stored is not counted when it is tried again.
        progress.rejections += kept.rejections
        repeated, expired = {}, {}
        async with alongside(self._reject.publish(kept)):
            for name, some in judged.outcome.rows.items():
                dataset = judged.datasets[name]
                recent = await self._recent(dataset, some)
                expired[name] = some.num_rows - recent.num_rows
                rows, repeated[name] = await self._append(dataset, recent, judged.batch)
                progress.rows[name] += rows
                if rows:
                    time = _newest_time(recent)
                    progress.newest[name] = max(time, progress.newest.get(name, time))
                fault_point("ingestion.after-delta-commit")
        progress.repeated.update(repeated)
        progress.expired.update(expired)
        progress.rest = None if judged.rest is None else judged.rest.begin
        if progress.rest is None:
            self._reject.forget()
            self._progress = _Progress()
        return progress.stored()

    async def reject(self, unreadable: Unreadable, span: Span, feed: Feed | None) -> Stored:
        """Keep a record batch that cannot be read, as one rejected event. `feed`: as a batch has it.

        Raises whatever the database or the broker raises: call again.
        """
        if self._progress.rest is not None:
            # Another batch was at hand, which was given up.
            self._progress = _Progress()
        rejection = rejection_of(unreadable, span, feed)
        rejected = await self._catalogue.rejected_places([span])
        await self._reject.publish_again(span.source.cluster, rejected)
        if not any(offset <= rejection.offset < end for (_, _, offset), end in rejected.items()):
            kept = await self._reject.keep([rejection], {}, {}, {})
            assert kept is not None, "no schema judged it"
            self._progress.rejections += kept.rejections
            await self._reject.publish(kept)
        self._reject.forget()
        stored, self._progress = self._progress.stored(), _Progress()
        return stored

    async def _judged(self, batch: Batch) -> _Judged:
        """The batch judged, or as much of it as fits."""
        rejected = await self._catalogue.rejected_places(batch.spans)
        opened, datasets = await self._open(batch, rejected)
        while (latest := await self._catalogue.rejected_places(batch.spans)) != rejected:
            rejected = latest
            opened, datasets = await self._open(batch, rejected)
        await self._reject.publish_again(batch.cluster, rejected)
        rest = None
        fitting = self._claims.fitting(opened.claimed)
        if fitting < len(opened.claimed):
            batch, rest = batch.split(opened.claimed[fitting].index)
            opened = await self._opened(batch, rejected)
        named, claims = opened.datasets(), self._places(opened)
        opened = await self._claims(opened, datasets.keys())
        schemas = await schemas_of(opened, self._registry)
        # Read behind the datasets: versions up to theirs are all there.
        earlier = await schema_versions_of(opened, self._catalogue)
        cluster = batch.cluster
        outcome = await asyncio.to_thread(
            judge_apart,
            cluster,
            opened,
            lambda some: self._judge.judge(cluster, some, datasets, schemas, earlier),
        )
        outcome.rejections = await self._without_stored(outcome.rejections, datasets, batch)
        rejecting = {rejection.dataset for rejection in outcome.rejections}
        versions = {
            name: datasets[name].schema_version if name in datasets else 0
            for name in named
            if name in rejecting
        }
        return _Judged(batch, rest, outcome, datasets, versions, claims)

    async def _without_stored(
        self, rejections: list[Rejection], datasets: Mapping[str, Dataset], batch: Batch
    ) -> list[Rejection]:
        """Without those of events that became rows by a schema before the one that was declared."""
        for name in {rejection.dataset for rejection in rejections} & datasets.keys():
            dataset = datasets[name]
            if dataset.declared_version:
                ends = await asyncio.to_thread(self._tables.accounted, dataset, batch.spans)
                by_partition = {source.partition: end for source, end in ends.items()}
                rejections = [
                    rejection
                    for rejection in rejections
                    if rejection.dataset != name
                    or rejection.offset >= by_partition.get(rejection.partition, 0)
                ]
        return rejections

    def _places(self, opened: Opened) -> Mapping[Place, str]:
        """Where the payloads lie that the events at these places claim."""
        records = opened.records
        paths = [(one.index, self._claims.path(one.claim)) for one in opened.claimed]
        return {
            (records.topic, int(records.partitions[index]), int(records.offsets[index])): path
            for index, path in paths
            if path is not None
        }

    async def _open(
        self, batch: Batch, rejected: Mapping[Place, int]
    ) -> tuple[Opened, Mapping[str, Dataset]]:
        opened = await self._opened(batch, rejected)
        # Read for each batch: a sample that is sent after ApplyDataset answered meets what was applied,
        # whichever instance answered and whichever reads the sample.
        return opened, await self._catalogue.datasets(opened.datasets())

    async def _opened(self, batch: Batch, rejected: Mapping[Place, int]) -> Opened:
        open_events = PlainEvents(batch.cluster, batch.feed).open if batch.feed else open_envelopes
        return await asyncio.to_thread(
            open_events, batch.records, batch.attributes, rejected, self._max_event_bytes
        )

    async def _keep(self, judged: _Judged) -> Kept | None:
        rejections, datasets = judged.outcome.rejections, judged.datasets
        return await self._reject.keep(rejections, datasets, judged.versions, judged.claims)

    async def _recent(self, dataset: Dataset, rows: pa.Table) -> pa.Table:
        """The rows that are not older than the dataset keeps them: what was taken out of its table is not
        known any more, so that a repetition of it would come back.

        Raises FailedPrecondition CLOCKS_DISAGREE where they disagree and some are older.
        """
        before = dataset.retention.oldest_event_time(self._clock())
        if before is None:
            return rows
        recent = await asyncio.to_thread(rows.filter, is_recent(before))
        if recent.num_rows < rows.num_rows:
            # What is left out is so for good: not by a clock that has jumped.
            await self._agreed_time()
        return recent

    async def _append(self, dataset: Dataset, rows: pa.Table, batch: Batch) -> tuple[int, int]:
        """How many rows were stored, and how many were left out as repetitions."""
        # A plain event's id is its place, which no other has.
        fresh = (
            Fresh(rows, 0)
            if batch.feed
            else await asyncio.to_thread(self._deduplicator.fresh, dataset, rows, batch.spans)
        )
        if not fresh.rows.num_rows:
            return 0, fresh.repeated
        with tracing.span(
            names.SPAN_COMMIT_TABLE,
            attributes={names.DATASET: dataset.name, names.ROWS: fresh.rows.num_rows},
        ) as span:
            with metrics.COMMIT_SECONDS.time():
                stored = await asyncio.to_thread(
                    self._tables.append, Append(dataset, fresh.rows, batch.spans)
                )
            span.set_attribute(names.ROWS_STORED, stored)
        fresh.remember()
        return stored, fresh.repeated


def _newest_time(rows: pa.Table) -> float:
    """Seconds since the epoch: a number, for not every event's time is in Python's calendar."""
    return float(pc.max(rows.column("_event_time")).cast(pa.int64()).as_py()) / 1e6
