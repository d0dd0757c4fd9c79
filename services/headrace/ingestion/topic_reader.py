"""A part of a topic, read once more by nobody's group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from headrace.errors import FailedPrecondition, Unavailable
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.messaging.client import batch_reader_client, cluster_id
from headrace.messaging.record_batch import MAX_BATCH_BYTES
from headrace.messaging.record_columns import Bounds, PartReader, Records

_POLL_MILLISECONDS: Final = 1000
_RECORD_BATCHES: Final = 64
_PART_EVENTS: Final = 100_000
_PART_BYTES: Final = 64 << 20
SILENCE_SECONDS: Final = 30.0
"""A broker that holds a record answers with it; one that says nothing for so long does not."""


class KafkaTopicReader:
    """Reads from one broker; each read has a connection of its own."""

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        silence_seconds: float = SILENCE_SECONDS,
        max_record_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        """`max_record_batch_bytes`: of a record batch, decompressed, beyond which it made no rows."""
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._silence_seconds = silence_seconds
        self._bounds = Bounds(_PART_EVENTS, _PART_BYTES, max_record_batch_bytes)

    async def cluster(self) -> str:
        """The cluster's id."""
        return await cluster_id(self._bootstrap)

    async def read(self, source: SourcePartition, start: int, end: int) -> AsyncGenerator[Records, None]:
        """The records at the offsets from `start` and before `end`, and maybe some behind.

        Raises FailedPrecondition TOPIC_EXPIRED where the topic begins later, Unavailable TOPIC_SILENT where
        the broker does not come to `end`.
        """
        partition = TopicPartition(source.topic, source.partition)
        async with self._consumer(partition) as consumer:
            first = (await consumer.beginning_offsets([partition]))[partition]
            if first > start:
                raise FailedPrecondition(
                    "TOPIC_EXPIRED",
                    f"{source.topic}/{source.partition} begins at offset {first}, and {start} is needed: "
                    "the topic's retention removed it; export the version instead",
                )
            consumer.seek(partition, start)
            async with aclosing(self._read_until(consumer, partition, end)) as parts:
                async for records in parts:
                    yield records

    async def _read_until(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, end: int
    ) -> AsyncGenerator[Records, None]:
        loop = asyncio.get_running_loop()
        heard, reached = loop.time(), 0
        while reached < end:
            fetched = await consumer.getmany(timeout_ms=_POLL_MILLISECONDS, max_records=_RECORD_BATCHES)
            batches = fetched.get(partition, [])
            if batches:
                heard, reached = loop.time(), batches[-1].next_offset
                reader = PartReader(partition.topic, batches, self._bounds)
                # What cannot be read made no rows.
                while (part := await asyncio.to_thread(reader.read)) is not None:
                    if len(part.records):
                        yield part.records
            elif loop.time() - heard > self._silence_seconds:
                raise Unavailable(
                    "TOPIC_SILENT",
                    f"{partition.topic}/{partition.partition} gave nothing behind offset {reached} for "
                    f"{self._silence_seconds:g} s, and {end} was to be reached; try again",
                )

    @asynccontextmanager
    async def _consumer(self, partition: TopicPartition) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = batch_reader_client(self._bootstrap, client_id=self._client_id)
        await consumer.start()
        try:
            consumer.assign([partition])
            yield consumer
        finally:
            await consumer.stop()
