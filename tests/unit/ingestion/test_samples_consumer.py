from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import Gauge
from tests.support.records import Sent, batch_of
from tests.support.spans import recorded_spans
from tests.support.waiting import eventually

from headrace.ingestion import consumers, metrics
from headrace.ingestion.consumers import COMPONENT, SamplesConsumer
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.domain.source_topic import Feed, SourceTopic
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.judge_batch import Batch
from headrace.ingestion.use_cases.ports import Span
from headrace.ingestion.use_cases.store_batch import StoreBatch, Stored
from headrace.messaging.record_batch import RecordBatch
from headrace.messaging.record_columns import Unreadable
from headrace.messaging.topics import SAMPLES
from headrace.runtime.health import Health

PARTITION = TopicPartition(SAMPLES, 0)


THEIRS = TopicPartition("clinic.scans", 0)
FEED = Feed("scans", SourceTopic(THEIRS.topic))


def record(offset: int, partition: TopicPartition = PARTITION) -> RecordBatch:
    return batch_of(Sent(offset), topic=partition.topic)


@dataclass
class FakeWorld:
    """A consumer and a store in memory. Like Kafka's client, a fetch during a rebalance waits for its end."""

    arriving: asyncio.Queue[RecordBatch] = field(default_factory=asyncio.Queue)
    feeds: dict[str, Feed] = field(default_factory=dict)
    feeds_away: bool = False
    subscribed: list[list[str]] = field(default_factory=list)
    rebalancing: bool = False
    fetching: bool = False
    away: bool = False
    newest: float = 0.0
    """The time of the newest event of each batch, in seconds since the epoch."""
    parts: int = 0
    """In how many more parts the next batch is stored than one."""
    coordinator_away: bool = False
    stored: list[int] = field(default_factory=list)
    batches: list[tuple[str, Feed | None]] = field(default_factory=list)
    """Topic and feed of each batch that was stored."""
    counts: list[int] = field(default_factory=list)
    """How many events each of them had."""
    rejected: list[tuple[Span, Feed | None]] = field(default_factory=list)
    """The record batches that could not be read."""
    forgotten: int = 0
    committed: list[Mapping[TopicPartition, OffsetAndMetadata]] = field(default_factory=list)

    def subscribe(self, topics: Collection[str], listener: ConsumerRebalanceListener) -> None:
        self.subscribed.append(list(topics))

    async def look(self) -> Mapping[str, Feed]:
        if self.feeds_away:
            raise ConnectionError("the database is away")
        return dict(self.feeds)

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[RecordBatch]]:
        self.fetching = True
        try:
            async with asyncio.timeout(None if self.rebalancing else timeout_ms / 1000):
                batch = await self.arriving.get()
                return {TopicPartition(batch.topic, batch.partition): [batch]}
        except TimeoutError:
            return {}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        if self.coordinator_away:
            await asyncio.Event().wait()
        self.committed.append(dict(offsets))

    def highwater(self, partition: TopicPartition) -> int:
        return 100

    async def __call__(self, batch: Batch) -> Stored:
        # Whatever stores a batch lets others run meanwhile.
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError("the database is away")
        if self.parts:
            self.parts -= 1
            return Stored({}, {}, (), complete=False)
        self.stored += batch.records.offsets.tolist()
        self.batches.append((batch.records.topic, batch.feed))
        self.counts.append(len(batch.records))
        count = len(batch.records)
        return Stored({"d": count}, {}, (), newest={"d": self.newest})

    async def reject(self, unreadable: Unreadable, span: Span, feed: Feed | None) -> Stored:
        if self.away:
            raise ConnectionError("the database is away")
        self.rejected.append((span, feed))
        return Stored({}, {}, ())

    def forget(self) -> None:
        self.forgotten += 1

    async def is_stored(self, offset: int) -> None:
        await eventually(lambda: asyncio.sleep(0, self.stored), lambda stored: offset in stored)


@dataclass
class Running:
    world: FakeWorld
    health: Health
    samples: SamplesConsumer

    async def ready(self, expected: bool) -> None:
        await eventually(lambda: asyncio.sleep(0, self.health.ready), lambda ready: ready is expected)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with consuming(FakeWorld()) as running:
        yield running


@asynccontextmanager
async def consuming(world: FakeWorld, **bounds: float) -> AsyncIterator[Running]:
    async def cluster() -> str:
        return "cluster"

    health = Health()
    samples = SamplesConsumer(
        cast("AIOKafkaConsumer", world),
        cast("StoreBatch", world),
        cluster_id=cluster,
        feeds=world.look,
        stored=lambda _: None,
        settings=Settings(
            **{"batch_seconds": 0.001, "retry_seconds": 0.01, "feeds_seconds": 0.01, **bounds}  # type: ignore[arg-type]
        ),
        health=health,
    )
    task = asyncio.create_task(samples.run())
    yield Running(world, health, samples)
    async with asyncio.timeout(5):
        await samples.drain()
        await task


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"batch_events": 3}, [3, 3]),
        ({"batch_bytes": 2 * record(0).size}, [2, 2, 2]),
        # So few are neither many nor large.
        ({"batch_seconds": 0.5}, [7]),
    ],
)
async def test_a_batch_is_closed_by_rows_bytes_or_time_whatever_comes_first(
    bounds: dict[str, float], expected: list[int]
) -> None:
    async with consuming(FakeWorld(), **{"batch_seconds": 3600, **bounds}) as running:
        for offset in range(7):
            await running.world.arriving.put(record(offset))
        await eventually(lambda: asyncio.sleep(0, running.world.counts), lambda found: found == expected)


def unreadable(*offsets: int, partition: TopicPartition = PARTITION) -> RecordBatch:
    """Its last byte is missing."""
    whole = batch_of(*map(Sent, offsets), topic=partition.topic)
    return RecordBatch(whole.topic, 0, offsets[0], whole.data[:-1])


async def test_a_record_batch_that_cannot_be_read_is_rejected_and_its_neighbours_go_on(
    running: Running,
) -> None:
    world = running.world
    world.feeds = {THEIRS.topic: FEED}
    await eventually(lambda: asyncio.sleep(0, world.subscribed), lambda told: len(told) == 2)
    for batch in (record(4), unreadable(5, 6, 7), record(8), unreadable(0, partition=THEIRS)):
        await world.arriving.put(batch)
    await eventually(lambda: asyncio.sleep(0, world.rejected), lambda found: len(found) == 2)
    await world.is_stored(8)
    assert world.stored == [4, 8]
    assert world.rejected == [
        (Span(SourcePartition("cluster", SAMPLES, 0), 5, 8), None),
        (Span(SourcePartition("cluster", THEIRS.topic, 0), 0, 1), FEED),
    ]
    await eventually(
        lambda: asyncio.sleep(0, world.committed), lambda found: found[-1].get(THEIRS) == (1, "")
    )


async def test_a_record_batch_that_cannot_be_read_waits_until_it_is_rejected(running: Running) -> None:
    running.world.away = True
    await running.world.arriving.put(unreadable(5))
    await running.ready(False)
    assert running.world.committed == []
    running.world.away = False
    await running.ready(True)
    await eventually(lambda: asyncio.sleep(0, running.world.committed), bool)
    assert [span.end for span, _ in running.world.rejected] == [6]


async def test_a_record_batch_whose_records_were_compacted_away_is_passed(running: Running) -> None:
    data = bytearray(record(5).data[:61])
    data[57:61] = bytes(4)
    await running.world.arriving.put(RecordBatch(SAMPLES, 0, 5, memoryview(data)))
    await eventually(lambda: asyncio.sleep(0, running.world.committed), bool)
    assert running.world.committed[0][PARTITION].offset == 6
    assert (running.world.stored, running.world.rejected) == ([], [])


async def test_what_one_record_batch_has_too_much_is_stored_in_parts() -> None:
    async with consuming(FakeWorld(), batch_events=2) as running:
        await running.world.arriving.put(batch_of(*map(Sent, range(10)), topic=SAMPLES))
        await running.world.is_stored(9)
        assert running.world.counts == [4, 4, 2]
        # Each is done with by itself.
        await eventually(lambda: asyncio.sleep(0, running.world.committed), lambda found: len(found) == 3)
    assert [offsets[PARTITION].offset for offsets in running.world.committed] == [4, 8, 10]


async def test_a_batch_links_some_of_its_events_however_many_are_traced() -> None:
    traceparents = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 201)]
    events = [
        Sent(number, headers=[("traceparent", traceparent.encode())])
        for number, traceparent in enumerate(traceparents)
    ]
    with recorded_spans() as exporter:
        async with consuming(FakeWorld()) as running:
            await running.world.arriving.put(batch_of(*events, topic=SAMPLES))
            await running.world.is_stored(199)
        [span] = [span for span in exporter.get_finished_spans() if span.name == f"process {SAMPLES}"]
    assert span.parent is not None
    assert span.parent.trace_id == 1
    assert [link.context.trace_id for link in span.links] == list(range(1, 129))
    assert (span.attributes or {})["messaging.batch.message_count"] == 200


async def test_a_failure_that_a_rebalance_ends_leaves_the_service_ready(
    running: Running,
) -> None:
    running.world.away = True
    await running.world.arriving.put(record(0))
    await running.ready(False)
    assert "the database is away" in running.health.components[COMPONENT].message
    # The partition leaves, and with it the batch that could not be stored.
    await running.samples.release()
    assert running.world.forgotten == 1
    await running.ready(True)
    assert running.world.stored == []


async def test_a_batch_that_is_stored_makes_the_service_ready(running: Running) -> None:
    running.world.away = True
    await running.world.arriving.put(record(0))
    await running.ready(False)
    running.world.away = False
    await running.ready(True)
    assert running.world.stored == [0]


async def test_offsets_are_committed_when_all_parts_of_a_batch_are_stored(running: Running) -> None:
    running.world.parts = 3
    await running.world.arriving.put(record(0))
    await eventually(lambda: asyncio.sleep(0, len(running.world.committed)), bool)
    assert (running.world.parts, running.world.stored) == (0, [0])


async def test_a_stop_does_not_wait_for_the_other_parts_of_a_batch() -> None:
    async with consuming(FakeWorld(parts=1 << 60)) as running:
        await running.world.arriving.put(record(0))
        await eventually(lambda: asyncio.sleep(0, running.world.parts), lambda parts: parts < 1 << 60)
    assert running.world.committed == []


async def test_a_stop_does_not_wait_for_the_end_of_a_rebalance() -> None:
    async with consuming(FakeWorld(rebalancing=True)) as running:
        await eventually(lambda: asyncio.sleep(0, running.world.fetching), bool)


async def test_offsets_that_nobody_takes_hold_up_no_batch_and_come_with_the_next_one(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "_COMMIT_SECONDS", 0.01)
    running.world.coordinator_away = True
    await running.world.arriving.put(record(0))
    await running.world.is_stored(0)
    await running.world.arriving.put(record(1))
    await running.world.is_stored(1)
    running.world.coordinator_away = False
    await running.world.arriving.put(record(2))
    await eventually(lambda: asyncio.sleep(0, len(running.world.committed)), bool)
    assert running.world.committed[-1][PARTITION].offset == 3
    assert running.health.ready


async def test_the_lag_of_partitions_that_left_is_no_longer_told(running: Running) -> None:
    await running.world.arriving.put(record(0))
    await eventually(lambda: asyncio.sleep(0, _lags()), lambda lags: lags == [99])
    await running.samples.release()
    assert _lags() == []


async def test_how_fresh_a_dataset_is_is_told_by_its_topic_and_by_its_events(running: Running) -> None:
    now = datetime.now(UTC).timestamp()
    for newest, expected in ((now - 3600, 3600), (now + 3600, 0)):
        running.world.newest = newest
        sent = Sent(0, timestamp=int((now - 9000) * 1000))
        await running.world.arriving.put(batch_of(sent, topic=SAMPLES))
        await eventually(
            lambda: asyncio.sleep(0, _of_the_dataset(metrics.EVENT_AGE)),
            lambda age, expected=expected: age == pytest.approx(expected, abs=1000),
        )
        assert _of_the_dataset(metrics.DATASET_FRESHNESS) == pytest.approx(9000, abs=1000)


def _of_the_dataset(gauge: Gauge) -> float:
    [family] = gauge.collect()
    return next((sample.value for sample in family.samples if sample.labels == {"dataset": "d"}), 0.0)


def _lags() -> list[float]:
    [family] = metrics.LAG.collect()
    return [sample.value for sample in family.samples]


async def test_a_topic_is_read_once_a_dataset_names_it_and_no_more_when_none_does(running: Running) -> None:
    world = running.world

    async def reads(*topics: str) -> None:
        await eventually(lambda: asyncio.sleep(0, world.subscribed), lambda told: told[-1] == list(topics))

    await reads(SAMPLES)
    world.feeds = {THEIRS.topic: FEED}
    await reads(THEIRS.topic, SAMPLES)
    # Not to know is no reason to stop.
    world.feeds_away = True
    await world.arriving.put(record(0, THEIRS))
    await world.is_stored(0)
    await world.arriving.put(record(1))
    await world.is_stored(1)
    assert world.batches == [(THEIRS.topic, FEED), (SAMPLES, None)]
    assert THEIRS in world.committed[0]
    world.feeds_away, world.feeds = False, {}
    await reads(SAMPLES)
    assert world.subscribed == [[SAMPLES], [THEIRS.topic, SAMPLES], [SAMPLES]]


async def test_what_was_read_of_a_topic_that_nobody_names_any_more_is_left(running: Running) -> None:
    world = running.world
    await world.arriving.put(record(0, THEIRS))
    await world.arriving.put(record(1))
    await world.is_stored(1)
    # Its offset stays where it is, for whoever names it next.
    assert world.batches == [(SAMPLES, None)]
    assert [list(offsets) for offsets in world.committed] == [[PARTITION]]
