"""The pool of connections, and the unit of work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

logger = logging.getLogger(__name__)

# A service is started beside its database, not after it.
CONNECT_SECONDS = 30.0
RETRY_SECONDS = 0.2
COMMAND_SECONDS = 30.0
# A process that was paused in a transaction holds rows that its successor waits for: then it loses them.
IDLE_IN_TRANSACTION_SECONDS = 10
# A host that vanished closes no connection: the server finds out after 20 s and not, by Linux' default, 2 h.
_KEEPALIVES = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2"}


@asynccontextmanager
async def connect(
    dsn: str, *, schema: str, application_name: str, max_size: int = 8, plan_anew: bool = False
) -> AsyncIterator[Pool]:
    """Open a pool whose connections work in `schema`, which is created where it is missing.

    jsonb columns are plain Python values, times are aware and in UTC. Waits up to 30 s for a server
    that is starting; raises what asyncpg raises after that. A transaction in which nothing happens for 10 s
    is rolled back by the server, and its connection closed.

    `plan_anew`: statements are planned each time they run, for tables as large as they are then. A plan that
    is kept is of the time when its connection was young; where tables grow by thousands of rows a second, it
    reads all of one that was empty, until autovacuum has come by, which takes a minute.
    """

    async def prepare(connection: Connection) -> None:
        await connection.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=orjson.loads,
        )

    await _create_schema(dsn, schema)
    pool = await asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=max_size,
        command_timeout=COMMAND_SECONDS,
        init=prepare,
        server_settings={
            "search_path": schema,
            "application_name": application_name,
            "timezone": "UTC",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
            **({"plan_cache_mode": "force_custom_plan"} if plan_anew else {}),
            **_KEEPALIVES,
        },
    )
    assert pool is not None
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """Run the block as one unit of work: committed at its end, rolled back when it raises."""
    async with pool.acquire() as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Connection]:
    """Run the block, which changes nothing, on what was committed when its first statement began.

    In a `transaction` each statement sees what was committed before it, so that two may not fit together.
    """
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


async def _create_schema(dsn: str, schema: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_SECONDS
    while True:
        try:
            connection = await asyncpg.connect(dsn)
            break
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            if loop.time() > deadline:
                raise
            await asyncio.sleep(RETRY_SECONDS)
    try:
        # CREATE SCHEMA IF NOT EXISTS can still collide with a concurrent one.
        await connection.execute("SELECT pg_advisory_lock(hashtext('headrace.schema'))")
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    finally:
        await connection.close()
