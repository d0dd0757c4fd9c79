"""Queues events where it is told to, and relays an outbox until it is killed."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from headrace.messaging.events import Event
from headrace.messaging.producer import Producer
from headrace.postgres import connect, outbox, transaction


async def main(dsn: str, bootstrap: str, topic: str, count: str) -> None:
    async with (
        connect(dsn, schema="tests", application_name="relaying") as pool,
        Producer(bootstrap, client_id="relaying", idempotence=False) as producer,
    ):
        for number in range(int(count)):
            async with transaction(pool) as connection:
                text = str(number)
                event = Event(text, "tests", "t", "s", datetime(2026, 1, 1, tzinfo=UTC), text.encode())
                await outbox.enqueue(connection, topic, f"key-{number % 3}", event)
        await outbox.Relay(pool, producer).run()


asyncio.run(main(*sys.argv[1:]))
