"""One leader among the instances of a service, by a session-level advisory lock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import asyncpg

from headrace.postgres.pool import Pool

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CHECK_SECONDS = 2.0


async def lead(pool: Pool, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` whenever this instance holds the lock `name`, until cancelled.

    The lock lives as long as its connection, which is checked each two seconds: when it is lost, another
    instance may lead before `work` is cancelled here. Writes must therefore still be checked against the
    state they were decided on. What `work` raises is raised; when the database is away, it is waited for.
    """
    while True:
        try:
            # The pool gives a connection's locks up when it takes the connection back.
            async with pool.acquire() as connection:
                if await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", name):
                    logger.info("leading: %s", name)
                    await _work_while_alive(connection, work)
        except (
            OSError,
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,
            asyncpg.InterfaceError,
        ) as error:
            logger.warning("the lock %s was lost: %s", name, error)
        await asyncio.sleep(RETRY_SECONDS)


async def _work_while_alive(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], work: Callable[[], Awaitable[None]]
) -> None:
    task = asyncio.ensure_future(work())
    try:
        while not task.done():
            await asyncio.wait([task], timeout=CHECK_SECONDS)
            # A server that does not answer has, for all that is known here, given the lock away.
            await connection.execute("SELECT 1", timeout=CHECK_SECONDS)
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
