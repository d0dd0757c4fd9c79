"""Topics are created from their files, once, whoever starts first; on every broker."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from headrace.embedded.parts.process import free_port
from headrace.messaging.client import cluster_id
from headrace.messaging.topics import SAMPLES, Topic, ensure_topics, load_topics

pytestmark = pytest.mark.broker


def topics(count: int) -> list[Topic]:
    template = load_topics()[SAMPLES].model_dump()
    return [
        Topic(**{**template, "name": f"tests.{uuid.uuid4().hex}.v1", "partitions": 3}) for _ in range(count)
    ]


async def partitions(bootstrap: str, wanted: list[Topic]) -> list[int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described = await admin.describe_topics([topic.name for topic in wanted])
        return [len(topic["partitions"]) for topic in described]
    finally:
        await admin.close()


async def test_missing_topics_are_created_and_existing_ones_left_alone(kafka_bootstrap: str) -> None:
    first, second = wanted = topics(2)
    assert await ensure_topics(kafka_bootstrap, [first]) == [first.name]
    assert await ensure_topics(kafka_bootstrap, wanted) == [second.name]
    assert await ensure_topics(kafka_bootstrap, wanted) == []
    assert await partitions(kafka_bootstrap, wanted) == [3, 3]


async def test_the_cluster_says_how_often_it_keeps_a_record(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    create_topics = AIOKafkaAdminClient.create_topics

    async def record(admin: AIOKafkaAdminClient, new: list[NewTopic]) -> object:
        asked.extend(topic.replication_factor for topic in new)
        return await create_topics(admin, new)

    monkeypatch.setattr(AIOKafkaAdminClient, "create_topics", record)
    (wanted,) = topics(1)
    assert await ensure_topics(kafka_bootstrap, [wanted]) == [wanted.name]
    assert asked == [-1]


async def test_services_that_start_together_create_each_topic_once(kafka_bootstrap: str) -> None:
    wanted = topics(3)
    created = await asyncio.gather(*(ensure_topics(kafka_bootstrap, wanted) for _ in range(4)))
    assert sorted(name for names in created for name in names) == sorted(topic.name for topic in wanted)
    assert await partitions(kafka_bootstrap, wanted) == [3, 3, 3]


async def test_all_topic_files_can_be_created(kafka_bootstrap: str) -> None:
    await ensure_topics(kafka_bootstrap, load_topics().values())
    assert await ensure_topics(kafka_bootstrap, load_topics().values()) == []


async def test_a_broker_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.messaging.topics.CONNECT_SECONDS", 0.3)
    with pytest.raises(KafkaConnectionError):
        await ensure_topics(f"127.0.0.1:{free_port()}", topics(1))


async def test_the_clusters_id_stays_the_same(kafka_bootstrap: str) -> None:
    assert await cluster_id(kafka_bootstrap) == await cluster_id(kafka_bootstrap) != ""
