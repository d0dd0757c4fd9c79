"""Events that follow from a write leave through here, in the same transaction, and are published later.

Order: rows are published by id. Ids are given before commits, so a transaction that commits late could be
overtaken by a later id of the same key; writers of one key hold that key's row lock (a job, a version, a
deployment), which orders them.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Iterable

import asyncpg

from headrace.messaging import metrics
from headrace.messaging.events import Event, Headers, encode, record_size
from headrace.messaging.producer import Producer
from headrace.postgres import inbox
from headrace.postgres.leader import lead
from headrace.postgres.pool import Connection, Pool
from headrace.runtime.faults import fault_point
from headrace.runtime.outage import is_outage
from headrace.runtime.waking import woken

logger = logging.getLogger(__name__)

CHANNEL = "headrace_outbox"
BATCH = 200
# A lost notification costs this much.
POLL_SECONDS = 1.0
RETRY_SECONDS = 1.0
PRUNE_SECONDS = 3600.0
# Kafka's own default limit for a record is 1 MiB, of which headers and key take some.
MAX_EVENT_BYTES = 1_000_000


class EventTooLarge(Exception):  # noqa: N818 - what it is, not what to call it
    """The event could never leave, and would hold up all those behind it."""


async def enqueue(connection: Connection, topic: str, key: str, event: Event) -> None:
    """Queue an event for publishing; it leaves if and when the transaction commits. Raises EventTooLarge."""
    await enqueue_all(connection, topic, [(key, event)])


async def enqueue_all(connection: Connection, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
    """Queue events with their keys, in order, as `enqueue` does one."""
    await enqueue_records(connection, topic, [(key.encode(), *encode(event)) for key, event in keyed])


async def enqueue_records(
    connection: Connection, topic: str, records: Iterable[tuple[bytes, Headers, bytes]]
) -> None:
    """Queue records (key, headers, value) of any bytes as they are, in order, as `enqueue` does an event."""
    rows = []
    for key, headers, value in records:
        size = record_size(key, headers, value)
        if size > MAX_EVENT_BYTES:
            event_id = dict(headers).get("ce_id", b"").decode(errors="replace")
            raise EventTooLarge(
                f"event {event_id} for {topic} has {size} bytes; at most {MAX_EVENT_BYTES} can be published"
            )
        text = _text(key)
        raw = key if text is None else None
        rows.append((topic, text or "", raw, [_header_json(*header) for header in headers], value))
    await connection.executemany(
        "INSERT INTO outbox (topic, key, raw_key, headers, value) VALUES ($1, $2, $3, $4, $5)", rows
    )
    await connection.execute("SELECT pg_notify($1, current_schema())", CHANNEL)


def _text(raw: bytes) -> str | None:
    """The bytes as a text that PostgreSQL can hold; None where they are none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _header_json(name: str, raw: bytes) -> list[str | bool]:
    text = _text(raw)
    return [name, base64.b64encode(raw).decode(), True] if text is None else [name, text]


def _header(name: str, text: str, encoded: bool = False) -> tuple[str, bytes]:
    return name, base64.b64decode(text) if encoded else text.encode()


class Relay:
    """Publishes a schema's outbox, and keeps its inbox short; of several instances one does.

    An event is deleted after the broker's acknowledgement: a crash in between publishes it a second time
    with the same `ce_id`, which consumers drop.
    """

    def __init__(self, pool: Pool, producer: Producer) -> None:
        self._pool = pool
        self._producer = producer
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Relay until cancelled."""
        schema = await self._schema()

        def notified(payload: str) -> None:
            if payload == schema:
                self._wake.set()

        await lead(self._pool, f"headrace.outbox.{schema}", self._relay, listen=(CHANNEL, notified))

    async def _schema(self) -> str:
        while True:
            try:
                return str(await self._pool.fetchval("SELECT current_schema()"))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                logger.warning("the outbox waits for PostgreSQL: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _relay(self) -> None:
        prune_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                while await self._publish_batch() == BATCH:
                    pass
            except (asyncpg.PostgresError, asyncpg.InterfaceError):
                raise
            except Exception as error:
                # Not every error is an absent broker: what a producer never recovers from ends the service,
                # which starts with a new one.
                if not is_outage(error):
                    raise
                # Events stay where they are.
                logger.warning("the outbox waits for the broker: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if loop.time() >= prune_at:
                await inbox.prune(self._pool)
                prune_at = loop.time() + PRUNE_SECONDS
            await woken(self._wake, POLL_SECONDS)

    async def _publish_batch(self) -> int:
        rows = await self._pool.fetch(
            "SELECT id, topic, key, raw_key, headers, value FROM outbox ORDER BY id LIMIT $1", BATCH
        )
        if not rows:
            return 0
        fault_point("outbox.before-publish")
        await self._producer.publish_encoded(
            [
                (
                    row["topic"],
                    row["key"] if row["raw_key"] is None else row["raw_key"],
                    [_header(*stored) for stored in row["headers"]],
                    row["value"],
                )
                for row in rows
            ]
        )
        fault_point("outbox.after-publish")
        await self._pool.execute(
            "DELETE FROM outbox WHERE id = ANY($1::bigint[])", [row["id"] for row in rows]
        )
        for topic, count in Counter(row["topic"] for row in rows).items():
            metrics.RELAYED.labels(topic).inc(count)
        return len(rows)
