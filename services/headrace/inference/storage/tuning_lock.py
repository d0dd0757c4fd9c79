"""The lock of whoever tunes, among all instances of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from headrace.postgres import Pool


class PostgresTuningLock:
    """An advisory lock; it lives as long as the connection, and so no longer than its process."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def take(self) -> AbstractAsyncContextManager[bool]:
        """Hold it within the block; false where another one does."""
        return self._take()

    @asynccontextmanager
    async def _take(self) -> AsyncIterator[bool]:
        # The pool gives a connection's locks up when it takes the connection back.
        async with self._pool.acquire() as connection:
            name = "headrace.inference.tuning"
            yield await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", name)
