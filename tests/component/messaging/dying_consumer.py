"""Handles twenty events, one line each on its output, and kills itself in the middle of the next."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from headrace.messaging.consumer import Consumer
from headrace.messaging.events import Event
from headrace.messaging.producer import Producer


async def main(bootstrap: str, topic: str, session_seconds: str) -> None:
    count = 0

    async def handler(event: Event) -> None:
        nonlocal count
        if count == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        print(event.data.decode(), flush=True)

    async with Producer(bootstrap, client_id="dying", idempotence=False) as producer:
        consumer = Consumer(
            bootstrap,
            group=f"g-{topic}",
            topics=[topic],
            handler=handler,
            dead_letters=producer,
            client_id="dying",
            session_seconds=float(session_seconds),
        )
        async with consumer:
            await consumer.run()


asyncio.run(main(*sys.argv[1:]))
