"""Many records sent together arrive as if each had been sent by itself."""

from __future__ import annotations

import uuid

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from headrace.messaging.producer import Encoded, Producer
from headrace.messaging.topics import DEAD_LETTERS, Topic, ensure_topics, load_topics

pytestmark = pytest.mark.broker

KEYS = 7


async def read(bootstrap: str, topic: str, count: int) -> list[ConsumerRecord]:
    records: list[ConsumerRecord] = []
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        while len(records) < count:
            for some in (await consumer.getmany(timeout_ms=1000)).values():
                records += some
    return records


async def test_batches_carry_each_record_once_in_the_order_of_its_key(kafka_bootstrap: str) -> None:
    topic = f"tests.{uuid.uuid4().hex}.v1"
    template = load_topics()[DEAD_LETTERS].model_dump()
    await ensure_topics(kafka_bootstrap, [Topic(**{**template, "name": topic, "partitions": 3})])
    # Several batches of a partition, and one record that is larger than a batch.
    records: list[Encoded] = [
        (
            topic,
            f"key-{number % KEYS}" if number % 2 else f"key-{number % KEYS}".encode(),
            [("ce_id", b"%d" % number)],
            bytes(400_000 if number == 500 else 1000),
        )
        for number in range(2000)
    ]
    async with Producer(kafka_bootstrap, client_id="tests", idempotence=False) as producer:
        await producer.publish_encoded([(topic, f"key-{key}", [], b"") for key in range(KEYS)])
        await producer.publish_batches(records)
        await producer.publish_batches([])
    found = await read(kafka_bootstrap, topic, len(records) + KEYS)
    assert len(found) == len(records) + KEYS
    for key in range(KEYS):
        of_key = [record for record in found if record.key == f"key-{key}".encode()]
        # Where aiokafka sends a record of this key by itself.
        assert len({record.partition for record in of_key}) == 1
        assert [int(dict(record.headers)["ce_id"]) for record in of_key[1:]] == list(range(key, 2000, KEYS))
