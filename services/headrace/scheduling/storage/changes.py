"""Who waits for what: PostgreSQL's notifications, handed to those in this process whom they concern.

A notification only says "look again": what it lost (a broken connection) is made good by waking everybody
when the connection is back, and by each waiter's own time limit.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import asyncpg

from headrace.postgres import Pool

logger = logging.getLogger(__name__)

CHANNEL: Final = "headrace_scheduling"
RETRY_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0

_ANY: Final = "*"


class EventWake:
    """A waiter (`use_cases.ports.Wake`)."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the waiter, now or at its next wait."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return at the first change since the last call, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class PostgresChanges:
    """`use_cases.ports.ChangeFeed` over LISTEN and NOTIFY."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wakes: defaultdict[str, set[EventWake]] = defaultdict(set)

    @contextmanager
    def any_change(self) -> Iterator[EventWake]:
        """Of any job or node."""
        with self._subscribed(_ANY) as wake:
            yield wake

    @contextmanager
    def of_job(self, job_id: str) -> Iterator[EventWake]:
        """Of one job."""
        with self._subscribed(f"job:{job_id}") as wake:
            yield wake

    @contextmanager
    def of_node(self, node: str) -> Iterator[EventWake]:
        """Of one node, or of the jobs assigned to it."""
        with self._subscribed(f"node:{node}") as wake:
            yield wake

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                logger.warning("not listening for changes: %s: %s", type(error).__name__, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        async with self._pool.acquire() as connection:
            schema = await connection.fetchval("SELECT current_schema()")

            def notified(*arguments: object) -> None:
                self._tell(schema, str(arguments[-1]))

            await connection.add_listener(CHANNEL, notified)
            try:
                self._wake_all()
                while True:
                    await asyncio.sleep(CHECK_SECONDS)
                    await connection.execute("SELECT 1")
            finally:
                if not connection.is_closed():
                    await connection.remove_listener(CHANNEL, notified)

    def _tell(self, schema: str, payload: str) -> None:
        change = json.loads(payload)
        if change["schema"] != schema:
            return
        subjects = [_ANY, *(f"node:{node}" for node in change["nodes"])]
        if "job" in change:
            subjects.append(f"job:{change['job']}")
        for subject in subjects:
            for wake in self._wakes.get(subject, ()):
                wake.set()

    def _wake_all(self) -> None:
        for wakes in self._wakes.values():
            for wake in wakes:
                wake.set()

    @contextmanager
    def _subscribed(self, subject: str) -> Iterator[EventWake]:
        wake = EventWake()
        self._wakes[subject].add(wake)
        try:
            yield wake
        finally:
            self._wakes[subject].discard(wake)
            if not self._wakes[subject]:
                del self._wakes[subject]
