"""One leader among the instances of a service, by a session-level advisory lock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from headrace.postgres.pool import Connection, Pool
from headrace.runtime.outage import is_outage

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CHECK_SECONDS = 2.0
# A leader whose host is gone, or paused, says nothing any more: then the server ends its session.
SILENCE_SECONDS = 10


async def lead(
    pool: Pool,
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    listen: tuple[str, Callable[[str], None]] | None = None,
) -> None:
    """Run `work` whenever this instance holds the lock `name`, until cancelled.

    `listen`: a channel, and what is called with each notification's payload while leading. The connection is
    the lock's own, which is known to be alive.

    The lock lives as long as its connection, which is checked each two seconds, and which the server ends
    when it was silent for ten: when it is lost, another instance may lead before `work` is cancelled here.
    Writes must therefore still be checked against the state they were decided on. What `work` raises is
    raised; when a part is away, it is waited for.
    """
    while True:
        try:
            # The pool gives a connection's locks up when it takes the connection back.
            async with pool.acquire() as connection:
                if await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", name):
                    # Taken back with the lock.
                    await connection.execute(f"SET idle_session_timeout = '{SILENCE_SECONDS}s'")
                    logger.info("leading: %s", name)
                    async with _listening(connection, listen):
                        await _work_while_alive(connection, work)
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("the lock %s was lost: %s", name, error)
        await asyncio.sleep(RETRY_SECONDS)


@asynccontextmanager
async def _listening(
    connection: Connection, listen: tuple[str, Callable[[str], None]] | None
) -> AsyncIterator[None]:
    if listen is None:
        yield
        return
    channel, heard = listen

    def notified(*arguments: object) -> None:
        heard(str(arguments[-1]))

    await connection.add_listener(channel, notified)
    try:
        yield
    finally:
        try:
            await connection.remove_listener(channel, notified)
            if connection.is_closed():
                # asyncpg then left the listener where it was, and would warn of it.
                connection.terminate()
        except Exception as error:
            # A lost connection hears nothing any more. Nor may this take a cancellation's place.
            if not is_outage(error):
                raise


async def _work_while_alive(connection: Connection, work: Callable[[], Awaitable[None]]) -> None:
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
