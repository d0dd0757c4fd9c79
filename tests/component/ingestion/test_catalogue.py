"""What transactions on the catalogue promise each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from tests.support.waiting import eventually

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.postgres import connect
from headrace.postgres.migrations import migrate

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8, nullable=True))
DATASET = Dataset("known", SCHEMA, Cut(), 1, NOW, NOW)
LATER = replace(DATASET, schema_version=2, update_time=NOW.replace(year=2027))


async def test_no_schema_is_applied_while_a_rejection_by_it_is_stored(postgres_dsn: str) -> None:
    async with connect(postgres_dsn, schema="ingestion", application_name="tests") as pool:
        await migrate(pool, "headrace.ingestion.storage")
        catalogue = PostgresCatalogue(pool)

        async def insert() -> bool:
            async with catalogue.transaction() as repository:
                return await repository.insert_dataset(DATASET)

        async def update() -> bool:
            async with catalogue.transaction() as repository:
                return await repository.update_dataset(LATER, DATASET)

        async def waiting() -> int:
            count: int = await pool.fetchval(
                "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            )
            return count

        for apply, version in ((insert, 0), (update, 1)):
            names = ["known", "no name that a dataset can have\0"]
            async with catalogue.transaction() as repository:
                held = await repository.hold_schema_versions(names)
                assert held == {"known": version, names[1]: 0}
                applying = asyncio.create_task(apply())
                await eventually(waiting, lambda count: count == 1)
                assert await repository.hold_schema_versions(names) == held
            assert await applying
        async with catalogue.transaction() as first, catalogue.transaction() as second:
            # Rejecting waits for nobody else who rejects.
            assert await first.hold_schema_versions(["known"]) == {"known": 2}
            assert await second.hold_schema_versions(["known"]) == {"known": 2}
