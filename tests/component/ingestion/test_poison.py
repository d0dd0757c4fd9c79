"""Record batches that cannot be read, among others that can, on a real broker."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.util import calc_crc32c
from tests.support.ingestion import Ingestion, Process
from tests.support.records import Sent, batch_of
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2
from headrace.errors import FailedPrecondition
from headrace.messaging.record_batch import RecordBatch

pytestmark = pytest.mark.broker

ZSTD = 4
# The service's default.
MOST = 64 << 20
# Apache Kafka looks into each batch, and takes none that is no records.
TAKES_ANYTHING = os.environ.get("HEADRACE_TEST_BROKER") != "kafka"


def good(name: str) -> RecordBatch:
    return batch_of(Sent(value=orjson.dumps({"id": name, "radius": 1.5, "malignant": 0})))


def bomb() -> RecordBatch:
    """Two events of zeros: a few kilobytes, and more than a service may take for them."""
    batch = batch_of(*(Sent(offset, bytes(MOST // 2)) for offset in range(2)), codec=ZSTD)
    assert batch.size < 20_000
    return batch


def nonsense() -> RecordBatch:
    """Three records that say to be compressed, and are not."""
    whole = batch_of(*(Sent(offset, b"\x80" * 50) for offset in range(3)))
    return with_checksum(whole, codec=ZSTD)


def with_checksum(batch: RecordBatch, *, codec: int) -> RecordBatch:
    data = bytearray(batch.data)
    data[22] = codec
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return RecordBatch(batch.topic, 0, 0, memoryview(data))


@asynccontextmanager
async def a_topic(ingestion: Ingestion) -> AsyncIterator[str]:
    """One of the test's own: others read the samples topic with clients that a bomb would kill."""
    topic = f"clinic.{uuid.uuid4()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=ingestion.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        yield topic
    finally:
        await admin.close()


async def produce(ingestion: Ingestion, topic: str, partition: int, batches: Sequence[RecordBatch]) -> None:
    """Each batch with the bytes that it has."""
    async with AIOKafkaProducer(bootstrap_servers=ingestion.bootstrap) as producer:
        for batch in batches:
            builder = producer.create_batch()
            for _ in range(batch.count):
                builder.append(key=None, value=b"", timestamp=None)
            builder.close()
            builder._buffer = bytearray(batch.data)
            await (await producer.send_batch(builder, topic, partition=partition))


async def apply(ingestion: Ingestion, process: Process, topic: str) -> None:
    request = api.ApplyDatasetRequest(
        name=ingestion.dataset,
        schema=ingestion.schema(),
        source=api.SourceTopic(topic=topic),
        rejects=api.Rejects(alert_share=1),
    )
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(request)


async def start(ingestion: Ingestion, **environment: str) -> Process:
    return await ingestion.start_ready(HEADRACE_INGESTION_FEEDS_SECONDS="0.2", **environment)


async def test_record_batches_that_cannot_be_read_are_rejected_once_and_hold_up_nothing(
    ingestion: Ingestion,
) -> None:
    poison = [bomb(), nonsense()] if TAKES_ANYTHING else [bomb()]
    async with a_topic(ingestion) as topic:
        first = await start(ingestion, HEADRACE_FAULT="ingestion.after-reject-commit")
        await produce(ingestion, topic, 0, [good("a"), *poison, good("b")])
        await produce(ingestion, topic, 1, [good("c")])
        await apply(ingestion, first, topic)
        # It dies right behind the first rejection.
        await first.killed()
        second = await start(ingestion)
        rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
        assert {row["id"] for row in rows} == {"a", "b", "c"}
        entries = await eventually(
            lambda: ingestion.rejected(second), lambda found: len(found) == len(poison)
        )
        assert [(entry.offset, entry.next_offset, entry.reason) for entry in entries] == [
            (1, 3, "OVERSIZE_BATCH"),
            (3, 6, "MALFORMED_BATCH"),
        ][: len(poison)]
        assert f"offsets 1 to 2 has more than {MOST} bytes" in entries[0].message
        # From the header's length on: where it stands and when it came is the broker's to say.
        assert [entry.payload[61:] for entry in entries] == [bytes(batch.data[61:]) for batch in poison]
        assert {entry.dataset for entry in entries} == {ingestion.dataset}

        async with ingestion.stub(second) as stub:
            with pytest.raises(FailedPrecondition, match="is a record batch that cannot be read") as refused:
                await stub.ReplayRejected(api.ReplayRejectedRequest(ids=[entries[0].id]))
            assert refused.value.reason == "NOT_AN_EVENT"
            chosen = api.RejectedFilter(dataset=ingestion.dataset)
            replayed = await stub.ReplayRejected(api.ReplayRejectedRequest(filter=chosen))
            assert replayed.replayed_count == 0
            unwanted = api.DiscardRejectedRequest(filter=chosen, reason="not ours")
            assert (await stub.DiscardRejected(unwanted)).discarded_count == len(poison)
            await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
        # Neither are they in the way of who reads the topic again.
        asked = versions_pb2.ReplayVersionRequest(
            dataset=ingestion.dataset, version=versions_pb2.VersionName(number=1)
        )
        async with ingestion.version_stub(second) as versions:
            answers = [answer async for answer in versions.ReplayVersion(asked)]
        assert answers[-1].result.same
        assert await second.stop() == 0
        third = await start(ingestion)
        await produce(ingestion, topic, 0, [good("d")])
        await eventually(ingestion.rows, lambda rows: len(rows) == 4)
        assert len(await ingestion.rejected(third)) == len(poison)
        assert await third.stop() == 0
