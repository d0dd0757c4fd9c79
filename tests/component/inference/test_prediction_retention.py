"""Predictions and labels go by their age, and by nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from headrace.inference.storage.repository import QUERIES
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.use_cases import forget_predictions
from headrace.inference.use_cases.forget_predictions import ForgetPredictions
from headrace.inference.use_cases.ports import LoggedPrediction, TrueLabel
from headrace.postgres import Pool, connect
from headrace.postgres.migrations import migrate

# Whatever a model's machine says of the time: the age is the server's.
LONG_AGO = datetime(2001, 1, 2, tzinfo=UTC)
RETENTION = timedelta(hours=24)


@pytest.fixture
async def pool(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    monkeypatch.setattr(forget_predictions, "TOGETHER", 2)
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        work = PostgresUnitOfWork(pool, "nowhere:1")
        async with work() as begun:
            await begun.rows.put_predictions([a_prediction(name) for name in "abcde"])
            # Of "nobody" there is no prediction.
            labels = [TrueLabel("m", name, 1.0, LONG_AGO) for name in ("a", "e", "nobody")]
            await begun.rows.put_feedback(labels)
        yield pool


def a_prediction(name: str, event_id: str = "") -> LoggedPrediction:
    return LoggedPrediction(
        event_id=event_id or f"event-{name}",
        prediction_id=name,
        deployment="m",
        version=1,
        time=LONG_AGO,
        seconds=0.1,
        inputs={},
        outputs={},
        answer=1.0,
        traceparent="",
    )


async def age(pool: Pool, *names: str) -> None:
    for table in ("predictions", "feedback"):
        await pool.execute(
            f"UPDATE {table} SET stored = now() - interval '25 hours' WHERE prediction_id = ANY($1)", names
        )


async def left(pool: Pool) -> list[str]:
    """Ids of predictions, and those of labels."""
    tables = ("predictions", "feedback")
    found = [await pool.fetch(f"SELECT prediction_id FROM {table} ORDER BY 1") for table in tables]
    return ["".join(row[0] for row in rows) for rows in found]


async def test_what_was_stored_long_ago_goes_whatever_number_it_is(pool: Pool) -> None:
    forget = ForgetPredictions(PostgresUnitOfWork(pool, "nowhere:1"), RETENTION)
    assert await forget() == 0
    assert await left(pool) == ["abcde", "aenobody"]
    await age(pool, "a", "b", "c", "nobody")
    assert await forget() == 3
    assert await left(pool) == ["de", "e"]
    assert await forget() == 0


async def test_a_label_stays_with_its_prediction(pool: Pool) -> None:
    await age(pool, "a")
    async with PostgresUnitOfWork(pool, "nowhere:1")() as begun:
        await begun.rows.put_predictions([a_prediction("a", "another")])
    assert await ForgetPredictions(PostgresUnitOfWork(pool, "nowhere:1"), RETENTION)() == 1
    assert await left(pool) == ["abcde", "aenobody"]


async def test_a_label_that_came_late_goes_with_its_prediction(pool: Pool) -> None:
    """No erasure would find it any more."""
    await pool.execute(
        "UPDATE predictions SET stored = now() - interval '25 hours' WHERE prediction_id IN ('a', 'e')"
    )
    async with PostgresUnitOfWork(pool, "nowhere:1")() as begun:
        await begun.rows.put_predictions([a_prediction("e", "another")])
    assert await ForgetPredictions(PostgresUnitOfWork(pool, "nowhere:1"), RETENTION)() == 2
    # That of "e" has another prediction.
    assert await left(pool) == ["bcde", "enobody"]


async def test_nobody_is_waited_for(pool: Pool) -> None:
    await age(pool, "a", "b")
    forget = ForgetPredictions(PostgresUnitOfWork(pool, "nowhere:1"), RETENTION)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM predictions WHERE prediction_id = 'a'")
        async with asyncio.timeout(10):
            assert await forget() == 1
    # Of "a" there was a prediction until then.
    assert await left(pool) == ["cde", "aenobody"]


async def test_the_oldest_are_found_without_reading_the_table(pool: Pool) -> None:
    async with PostgresUnitOfWork(pool, "nowhere:1")() as begun:
        await begun.rows.put_predictions([a_prediction(str(place)) for place in range(10_000)])
    await age(pool, "a")
    await pool.execute("VACUUM ANALYZE predictions")
    query = QUERIES["forget_predictions"].replace("$1", "'1 day'").replace("$2", "5000")
    [plan] = json.loads(await pool.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}"))
    pages = await pool.fetchval("SELECT pg_relation_size('predictions') / 8192")
    assert plan["Plan"]["Actual Rows"] == 1
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < pages / 5
