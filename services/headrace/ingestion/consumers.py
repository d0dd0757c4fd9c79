"""The samples topic, and those of datasets: records into batches, batches to the use case, offsets to Kafka.

Offsets are committed last, and only as a bookmark: which events a table holds is in the table itself, so
that records which are read again after a crash or a rebalance change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from opentelemetry.trace import SpanKind

from headrace.errors import one_line
from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.judge_batch import Batch
from headrace.ingestion.use_cases.ports import Span
from headrace.ingestion.use_cases.store_batch import StoreBatch, Stored
from headrace.messaging.attributes import Attributes, read_attributes
from headrace.messaging.record_batch import RecordBatch
from headrace.messaging.record_columns import Bounds, Part, PartReader, Reach
from headrace.messaging.topics import SAMPLES
from headrace.runtime.faults import fault_point
from headrace.runtime.health import Health
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

COMPONENT: Final = "samples"
_POLL_SECONDS: Final = 0.25
_FIRST_PAUSE_SECONDS: Final = 0.1
# A failure may be a blink; after so many in a row the service says that it is not ready.
_FAILURES_UNTIL_UNREADY: Final = 3
# The client repeats a commit without end while the coordinator is away; a bookmark is not worth the wait.
_COMMIT_SECONDS: Final = 5.0
# OpenTelemetry drops a span's links beyond 128 without a word.
_MAX_LINKS: Final = 128
# Record batches that are asked for at once; what is collected may be larger than its bounds by so many.
_RECORD_BATCHES: Final = 8
# What is stored at once is no larger than so many times the bounds, whatever record batches hold: one commit
# for a little more than a batch is better than two.
_PART: Final = 2


@dataclass(frozen=True, slots=True)
class _Collected:
    """Record batches by partition, read under one assignment of partitions."""

    assignment: int
    batches: dict[TopicPartition, list[RecordBatch]]

    def by_topic(self) -> Iterator[tuple[str, _Collected]]:
        for topic in {partition.topic: None for partition in self.batches}:
            own = {partition: some for partition, some in self.batches.items() if partition.topic == topic}
            yield topic, _Collected(self.assignment, own)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A part of what was collected, decoded."""

    part: Part
    attributes: Attributes

    @property
    def count(self) -> int:
        """Its events; a record batch that cannot be read counts as one."""
        return len(self.part.records) + (self.part.unreadable is not None)


@dataclass(slots=True)
class _Work:
    """What was collected of a topic, and the part of it that is in hand."""

    topic: str
    assignment: int
    reader: PartReader
    read: _Read | None = None


class SamplesConsumer:
    """Reads samples until it is told to stop."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        store: StoreBatch,
        *,
        cluster_id: Callable[[], Awaitable[str]],
        feeds: Callable[[], Awaitable[Mapping[str, Feed]]],
        stored: Callable[[Collection[str]], None],
        settings: Settings,
        health: Health,
    ) -> None:
        """`consumer` is started and not subscribed; `stored` hears which datasets got rows.

        `feeds` looks for the topics that are read beside the samples topic.
        """
        self._consumer = consumer
        self._store = store
        self._fetch_cluster_id = cluster_id
        self._fetch_feeds = feeds
        self._feeds: Mapping[str, Feed] = {}
        self._topics: set[str] = set()
        self._stored = stored
        self._settings = settings
        self._health = health
        # Held while a batch is stored and its offsets are committed: partitions leave only in between.
        self._batch_lock = asyncio.Lock()
        self._assignment = 0
        self._cluster: str | None = None
        self._next_offsets: dict[TopicPartition, int] = {}
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Consume until `drain`."""
        await self._subscribe()
        self._health.set_ready(COMPONENT, True)
        # While a batch is stored, the next one is collected.
        collecting = asyncio.create_task(self._collect())
        stopping = asyncio.create_task(self._stopping.wait())
        following = asyncio.create_task(self._follow_feeds())
        try:
            while not self._stopping.is_set():
                # During a rebalance a fetch waits for its end, whatever timeout it was given.
                await asyncio.wait({collecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not collecting.done():
                    break
                collected = collecting.result()
                collecting = asyncio.create_task(self._collect())
                for topic, some in collected.by_topic():
                    await self._process(self._work(topic, some))
        finally:
            # What was collected and not stored is read again by whoever is next.
            collecting.cancel()
            stopping.cancel()
            following.cancel()
            await asyncio.gather(collecting, stopping, following, return_exceptions=True)
            self._stopped.set()

    async def drain(self) -> None:
        """Stop fetching, finish the batch in hand, commit its offsets."""
        self._stopping.set()
        await self._stopped.wait()

    async def release(self) -> None:
        """Wait for the batch in hand, and forget what belonged to the partitions that leave."""
        async with self._batch_lock:
            self._assignment += 1
            # A broker without a disk comes back as another cluster, whose offsets begin again.
            self._cluster = None
            self._next_offsets.clear()
            self._uncommitted.clear()
            self._store.forget()
            # Whoever reads a partition now tells its lag.
            metrics.LAG.clear()

    async def _follow_feeds(self) -> None:
        while not await self._stops_within(self._settings.feeds_seconds):
            await self._subscribe()

    async def _subscribe(self) -> None:
        """Read the samples topic, and what datasets name."""
        try:
            feeds = await self._fetch_feeds()
        except Exception as error:
            logger.warning("topics of datasets were not looked for: %s", one_line(error))
            feeds = self._feeds
        topics = {SAMPLES, *feeds}
        # Between two batches: the partitions that stay are assigned anew, too.
        async with self._batch_lock:
            self._feeds = feeds
            if topics != self._topics:
                self._consumer.subscribe(sorted(topics), listener=_Listener(self))
                self._topics = topics

    async def _collect(self) -> _Collected:
        """Up to a batch of records: all that there is, or what arrives soon after the first."""
        loop = asyncio.get_running_loop()
        batches: defaultdict[TopicPartition, list[RecordBatch]] = defaultdict(list)
        assignment, count, size, deadline = self._assignment, 0, 0, 0.0
        limits = self._settings
        while not self._stopping.is_set() and count < limits.batch_events and size < limits.batch_bytes:
            patience = deadline - loop.time() if batches else _POLL_SECONDS
            if patience <= 0:
                break
            fetched = await self._consumer.getmany(
                timeout_ms=max(1, int(patience * 1000)), max_records=_RECORD_BATCHES
            )
            if self._assignment != assignment:
                # The positions were reset: what was collected before comes again.
                assignment, count, size = self._assignment, 0, 0
                batches.clear()
            if fetched and not batches:
                deadline = loop.time() + limits.batch_seconds
            for partition, some in fetched.items():
                batches[partition] += some
                # Whatever a batch says that it has.
                count += sum(max(batch.count, 0) for batch in some)
                size += sum(batch.size for batch in some)
        return _Collected(assignment, batches)

    def _work(self, topic: str, collected: _Collected) -> _Work:
        limits = self._settings
        bounds = Bounds(
            _PART * limits.batch_events, _PART * limits.batch_bytes, limits.max_record_batch_bytes
        )
        batches = (batch for batches in collected.batches.values() for batch in batches)
        return _Work(topic, collected.assignment, PartReader(topic, batches, bounds))

    async def _process(self, work: _Work) -> None:
        """Store what was collected of a topic, however long it takes, unless partitions are taken away."""
        pause, failures = _FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                # Partitions may leave between two parts of a batch, too.
                async with self._batch_lock:
                    # A topic that nobody names any more goes, with what was read of it.
                    ended = (
                        work.assignment != self._assignment
                        or work.topic not in self._topics
                        or await self._attempt(work)
                    )
            except Exception as error:
                failures += 1
                metrics.BATCH_FAILURES.inc()
                logger.warning(
                    "a batch of %d events could not be stored, trying again in %.1f s: %s",
                    work.read.count if work.read else 0,
                    pause,
                    one_line(error),
                    # Once: an outage fails in the same way again and again.
                    exc_info=failures == 1,
                )
                if failures >= _FAILURES_UNTIL_UNREADY:
                    self._health.set_ready(COMPONENT, False, one_line(error))
            else:
                # Also where the batch has become somebody else's: what failed was that batch.
                self._health.set_ready(COMPONENT, True)
                if ended or self._stopping.is_set():
                    return
                pause, failures = _FIRST_PAUSE_SECONDS, 0
                continue
            if await self._stops_within(pause):
                # Nothing is lost: the offsets stay where they are.
                return
            pause = min(2 * pause, self._settings.retry_seconds)

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _attempt(self, work: _Work) -> bool:
        """Store the part in hand, or some of it, or else the next one; answer whether there is none left."""
        started = asyncio.get_running_loop().time()
        if work.read is None:
            # Once: it is decoded however often it is tried.
            work.read = await asyncio.to_thread(_read, work.reader)
            if work.read is None:
                return True
        read, topic = work.read, work.topic
        cluster = await self._cluster_of(topic, read.part)
        traceparents = _traceparents(read.attributes)
        with tracing.span(
            names.SPAN_PROCESS + topic,
            kind=SpanKind.CONSUMER,
            parent=traceparents[0] if traceparents else "",
            links=traceparents,
            attributes={
                names.MESSAGING_SYSTEM: "kafka",
                names.MESSAGING_OPERATION_NAME: "process",
                names.MESSAGING_OPERATION_TYPE: "process",
                names.MESSAGING_DESTINATION: topic,
                names.MESSAGING_CONSUMER_GROUP: self._settings.consumer_group,
                names.MESSAGING_BATCH_COUNT: read.count,
            },
        ) as span:
            stored = await self._store_part(cluster, topic, read)
            span.set_attribute(names.ROWS_STORED, sum(stored.rows.values()))
            span.set_attribute(names.REPEATED, sum(stored.repeated.values()))
            span.set_attribute(names.REJECTED, len(stored.rejections))
        self._stored([name for name, rows in stored.rows.items() if rows])
        if stored.complete:
            await self._commit_offsets(topic, read.part.reaches)
            self._count(topic, read, stored, asyncio.get_running_loop().time() - started)
            work.read = None
        return False

    async def _store_part(self, cluster: str, topic: str, read: _Read) -> Stored:
        part, feed = read.part, self._feeds.get(topic)
        spans = [
            Span(SourcePartition(cluster, topic, reach.partition), reach.start, reach.end)
            for reach in part.reaches
        ]
        if part.unreadable is not None:
            [span] = spans
            stored = await self._store.reject(part.unreadable, span, feed)
            if stored.rejections:
                logger.warning("rejected as a whole: %s", part.unreadable.error)
            return stored
        return await self._store(Batch(cluster, part.records, read.attributes, spans, feed))

    async def _cluster_of(self, topic: str, part: Part) -> str:
        """The cluster's id, asked again where offsets went backwards: then the broker lost its log."""
        backwards = any(
            reach.start < self._next_offsets.get(TopicPartition(topic, reach.partition), 0)
            for reach in part.reaches
        )
        if self._cluster is None or backwards:
            self._cluster = await self._fetch_cluster_id()
        return self._cluster

    async def _commit_offsets(self, topic: str, reaches: Sequence[Reach]) -> None:
        for reach in reaches:
            partition = TopicPartition(topic, reach.partition)
            self._next_offsets[partition] = reach.end
            self._uncommitted[partition] = OffsetAndMetadata(reach.end, "")
        fault_point("ingestion.before-offset-commit")
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                await self._consumer.commit(self._uncommitted)
        except (KafkaError, IllegalStateError, TimeoutError) as error:
            # The next commit includes these; and where the partitions have gone to somebody else, the
            # tables tell them what is stored.
            logger.warning("offsets were not committed: %r", error)
        else:
            self._uncommitted.clear()

    def _count(self, topic: str, read: _Read, stored: Stored, seconds: float) -> None:
        reaches = read.part.reaches
        metrics.EVENTS.inc(read.count)
        metrics.BATCH_EVENTS.observe(read.count)
        metrics.BATCH_SECONDS.observe(seconds)
        for name, rows in stored.rows.items():
            metrics.ROWS.labels(name).inc(rows)
        for name, repeated in stored.repeated.items():
            metrics.DUPLICATES.labels(name).inc(repeated)
        for name, expired in stored.expired.items():
            metrics.EXPIRED_EVENTS.labels(name).inc(expired)
        for reason, count in Counter(one.verdict.reason for one in stored.rejections).items():
            metrics.REJECTED.labels(reason.value).inc(count)
        now = datetime.now(UTC).timestamp()
        oldest = min(reach.time for reach in reaches) / 1000
        for name, rows in stored.rows.items():
            if rows:
                metrics.DATASET_FRESHNESS.labels(name).set(max(0.0, now - oldest))
        for name, time in stored.newest.items():
            # The clock of who made the event may be ahead.
            metrics.EVENT_AGE.labels(name).set(max(0.0, now - time))
        for reach in reaches:
            metrics.FRESHNESS.observe(max(0.0, now - reach.time / 1000))
            highwater = self._consumer.highwater(TopicPartition(topic, reach.partition))
            if highwater is not None:
                metrics.LAG.labels(topic, str(reach.partition)).set(max(0, highwater - reach.end))


@asynccontextmanager
async def started(consumer: AIOKafkaConsumer) -> AsyncIterator[AIOKafkaConsumer]:
    """The consumer, started, and stopped at the end."""
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Lets partitions go only between two batches."""

    def __init__(self, samples: SamplesConsumer) -> None:
        self._samples = samples

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._samples.release()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        for topic in sorted({SAMPLES, *(partition.topic for partition in assigned)}):
            partitions = sorted(partition.partition for partition in assigned if partition.topic == topic)
            logger.info("reading partitions %s of %s", partitions, topic)


def _read(reader: PartReader) -> _Read | None:
    part = reader.read()
    return None if part is None else _Read(part, read_attributes(part.records))


def _traceparents(attributes: Attributes) -> list[str]:
    """Those of the first events that have one."""
    traced = np.flatnonzero(attributes.traceparents.lengths > 0)[:_MAX_LINKS]
    return [attributes.traceparents[int(index)].decode(errors="replace") for index in traced]
