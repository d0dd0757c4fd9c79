from __future__ import annotations

import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from headrace.errors import FailedPrecondition, Unavailable
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.topic_reader import KafkaTopicReader

pytestmark = pytest.mark.broker


@pytest.fixture
async def source(kafka_bootstrap: str) -> SourcePartition:
    """A partition of ten records."""
    topic = f"reader-{uuid.uuid4()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        for number in range(10):
            await producer.send_and_wait(topic, str(number).encode(), partition=0)
    return SourcePartition("cluster", topic, 0)


async def read(reader: KafkaTopicReader, source: SourcePartition, start: int, end: int) -> list[int]:
    offsets: list[int] = []
    async for records in reader.read(source, start, end):
        offsets += records.offsets.tolist()
    return offsets


async def test_records_are_read_from_an_offset_to_another(
    kafka_bootstrap: str, source: SourcePartition
) -> None:
    reader = KafkaTopicReader(kafka_bootstrap, client_id="test")
    assert (await read(reader, source, 3, 7))[:4] == [3, 4, 5, 6]
    assert await read(reader, source, 0, 10) == list(range(10))


async def test_a_broker_that_does_not_come_to_the_end_is_told_of(
    kafka_bootstrap: str, source: SourcePartition
) -> None:
    reader = KafkaTopicReader(kafka_bootstrap, client_id="test", silence_seconds=0.1)
    with pytest.raises(Unavailable) as caught:
        await read(reader, source, 0, 11)
    assert caught.value.reason == "TOPIC_SILENT"


async def test_a_topic_that_begins_later_has_expired(
    kafka_bootstrap: str, source: SourcePartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after the topic's retention; the embedded broker deletes no record when it is asked to.
    ask = AIOKafkaConsumer.beginning_offsets

    async def begins_at_4(
        consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> dict[TopicPartition, int]:
        return dict.fromkeys(await ask(consumer, partitions), 4)

    monkeypatch.setattr(AIOKafkaConsumer, "beginning_offsets", begins_at_4)
    reader = KafkaTopicReader(kafka_bootstrap, client_id="test")
    assert await read(reader, source, 4, 10) == list(range(4, 10))
    with pytest.raises(FailedPrecondition) as caught:
        await read(reader, source, 3, 10)
    assert caught.value.reason == "TOPIC_EXPIRED"
    assert "begins at offset 4, and 3 is needed" in caught.value.message
