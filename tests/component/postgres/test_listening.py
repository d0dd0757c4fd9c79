"""Notifications: those of the schema are heard, and that a lost connection may have missed some is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from tests.support.waiting import eventually

from headrace.postgres import Pool, connect
from headrace.postgres.listening import listen

CHANNEL = "tests_changes"


class Listener:
    """What it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def heard(self, change: Mapping[str, Any]) -> None:
        self.told.append(change["what"])

    async def run(self, pool: Pool) -> None:
        await listen(
            pool,
            CHANNEL,
            self.heard,
            begun=lambda: self.told.append("begun"),
            lost=lambda: self.told.append("lost"),
        )

    async def until(self, *told: str) -> None:
        async def now() -> list[str]:
            return list(self.told)

        await eventually(now, lambda heard: heard == list(told))


@pytest.fixture
async def pool(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    monkeypatch.setattr("headrace.postgres.listening.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("headrace.postgres.listening.CHECK_SECONDS", 0.1)
    async with connect(postgres_dsn, schema="tests", application_name="tests") as opened:
        yield opened


@pytest.fixture
async def listener(pool: Pool) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.create_task(listener.run(pool))
    yield listener
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def tell(pool: Pool, schema: str, what: str) -> None:
    payload = json.dumps({"schema": schema, "what": what})
    await pool.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)


async def test_notifications_of_the_schema_are_heard_and_no_others(pool: Pool, listener: Listener) -> None:
    await listener.until("begun")
    for schema, what in (("tests", "first"), ("elsewhere", "never"), ("tests", "second")):
        await tell(pool, schema, what)
    await listener.until("begun", "first", "second")


async def test_a_lost_connection_is_told_and_made_good(pool: Pool, listener: Listener) -> None:
    await listener.until("begun")
    await pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND application_name = 'tests'"
    )
    await listener.until("begun", "lost", "begun")
    await tell(pool, "tests", "later")
    await listener.until("begun", "lost", "begun", "later")


async def test_a_server_that_says_nothing_any_more_is_not_waited_for(pool: Pool, listener: Listener) -> None:
    await listener.until("begun")
    backend = await pool.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name = 'tests'"
    )
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await listener.until("begun", "lost", "begun")
        await tell(pool, "tests", "later")
        await listener.until("begun", "lost", "begun", "later")
    finally:
        os.kill(backend, signal.SIGCONT)
