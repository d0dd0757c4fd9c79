"""Plain Kafka clients with the platform's settings, for loops of one's own."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from headrace.messaging.fetching import WHOLE_BATCHES

SESSION_SECONDS = 10.0
MAX_FETCH_BYTES = 64 << 20
# Kafka's own default.
WAIT_MS = 500
# For topics where somebody waits for an answer.
SHORT_WAIT_MS = 20
ONE_DAY_MS = 24 * 60 * 60 * 1000


def consumer_client(
    bootstrap: str,
    *,
    group: str,
    client_id: str,
    session_seconds: float = SESSION_SECONDS,
    wait_ms: int = WAIT_MS,
) -> AIOKafkaConsumer:
    """A consumer that begins at the earliest event and commits only when told to.

    After `session_seconds` without a heartbeat its partitions go to others. The embedded broker lets a
    group wait for half of that whenever a member joins. `wait_ms`: how long the broker may hold a fetch that
    finds nothing; the embedded one looks again after half of it, whatever comes meanwhile.
    """
    return _consumer_client(bootstrap, group, client_id, session_seconds, None, wait_ms)


def batch_consumer_client(
    bootstrap: str, *, group: str, client_id: str, session_seconds: float = SESSION_SECONDS
) -> AIOKafkaConsumer:
    """Like `consumer_client`, but what it reads are `RecordBatch`es."""
    return _consumer_client(bootstrap, group, client_id, session_seconds, WHOLE_BATCHES)


def reader_client(bootstrap: str, *, client_id: str) -> AIOKafkaConsumer:
    """A consumer in no group, which reads all partitions of the topics that it subscribes to, soon."""
    return _consumer_client(bootstrap, None, client_id, SESSION_SECONDS, None, SHORT_WAIT_MS)


def batch_reader_client(bootstrap: str, *, client_id: str) -> AIOKafkaConsumer:
    """A consumer of `RecordBatch`es in no group, for partitions that it is assigned by hand."""
    return _consumer_client(bootstrap, None, client_id, SESSION_SECONDS, WHOLE_BATCHES)


def _consumer_client(
    bootstrap: str,
    group: str | None,
    client_id: str,
    session_seconds: float,
    value_deserializer: Callable[[bytes], bytes] | None,
    wait_ms: int = WAIT_MS,
) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        client_id=client_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=int(session_seconds * 1000),
        heartbeat_interval_ms=int(session_seconds * 300),
        # A consumer that does not ask for more waits for a part that is away; it is no less alive.
        max_poll_interval_ms=ONE_DAY_MS,
        fetch_max_wait_ms=wait_ms,
        fetch_max_bytes=MAX_FETCH_BYTES,
        max_partition_fetch_bytes=16 << 20,
        # Others' topics may hold transactions, and what was aborted never happened.
        isolation_level="read_committed",
        value_deserializer=value_deserializer,
    )


async def cluster_id(bootstrap: str) -> str:
    """The broker's cluster id: offsets mean nothing without it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        description = await admin.describe_cluster()
        return str(description["cluster_id"])
    finally:
        await admin.close()


async def topic_exists(bootstrap: str, topic: str) -> bool:
    """Whether the cluster has the topic; asking creates none."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return topic in await admin.list_topics()
    finally:
        await admin.close()
