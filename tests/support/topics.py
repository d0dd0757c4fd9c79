"""Topics that are deleted, and made again."""

from __future__ import annotations

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, TopicAlreadyExistsError
from tests.support.waiting import eventually

from headrace.messaging.client import reader_client
from headrace.messaging.topics import Topic, ensure_topics


async def make_again(bootstrap: str, topic: Topic) -> None:
    """Delete it, and create it as soon as the broker lets it; returns when the broker has the new one."""
    await delete(bootstrap, topic)
    await create(bootstrap, topic)
    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
    reader = reader_client(bootstrap, client_id="tests")
    await reader.start()

    async def ends() -> set[int]:
        # For a moment it may still write to the old one, and lose it.
        try:
            return set((await reader.end_offsets(partitions)).values())
        except KafkaError:
            return set()

    try:
        await eventually(ends, lambda found: found == {0})
    finally:
        await reader.stop()


async def delete(bootstrap: str, topic: Topic) -> None:
    """Delete it; the broker does so in its own time."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic.name])
    finally:
        await admin.close()


async def create(bootstrap: str, topic: Topic) -> None:
    """Create it as soon as the one before is gone."""

    async def created() -> list[str]:
        try:
            return await ensure_topics(bootstrap, [topic])
        except TopicAlreadyExistsError:
            return []

    await eventually(created, bool)
