"""Changes that another connection has made, as notifications.

A notification only says "look again": what was lost with a connection is made good by looking at everything
when there is another.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import asyncpg

from headrace.postgres.pool import Pool

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0


async def listen(
    pool: Pool,
    channel: str,
    heard: Callable[[Mapping[str, Any]], None],
    *,
    begun: Callable[[], None],
    lost: Callable[[], None] = lambda: None,
) -> None:
    """Call `heard` with each notification of the channel that is of the pool's schema, until cancelled.

    Payloads are JSON objects whose `schema` says of which they are. From a call of `begun` to one of `lost`
    nothing is missed, but for up to ten seconds where the server vanished without a word.
    """
    while True:
        try:
            await _listen(pool, channel, heard, begun, lost)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("not listening to %s: %s: %s", channel, type(error).__name__, error)
        await asyncio.sleep(RETRY_SECONDS)


async def _listen(
    pool: Pool,
    channel: str,
    heard: Callable[[Mapping[str, Any]], None],
    begun: Callable[[], None],
    lost: Callable[[], None],
) -> None:
    async with pool.acquire() as connection:
        schema = await connection.fetchval("SELECT current_schema()")

        def notified(*arguments: object) -> None:
            change = json.loads(str(arguments[-1]))
            if change["schema"] == schema:
                heard(change)

        await connection.add_listener(channel, notified)
        try:
            begun()
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                await connection.execute("SELECT 1", timeout=CHECK_SECONDS)
        finally:
            lost()
            # Not given back: where the server vanished, it would be waited for.
            connection.terminate()
