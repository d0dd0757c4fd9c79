"""What transactions on the catalogue promise each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from tests.support.waiting import eventually

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.erasure import ErasureState, requested
from headrace.ingestion.domain.key_ring import NO_KEYS
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.domain.source_topic import Feed, SourceFormat, SourceTopic
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.postgres import Pool, connect
from headrace.postgres.migrations import migrate

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8, nullable=True))
DATASET = Dataset("known", SCHEMA, Cut(), 1, NOW, NOW)
LATER = replace(DATASET, schema_version=2, update_time=NOW.replace(year=2027))


VERSION = DatasetVersion("known", 1, 7, 1, 3, 0, (), NOW, "")


async def waiting(pool: Pool) -> int:
    """How many transactions wait for others."""
    count: int = await pool.fetchval(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    )
    return count


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

        for apply, version in ((insert, 0), (update, 1)):
            names = ["known", "no name that a dataset can have\0"]
            async with catalogue.transaction() as repository:
                held = await repository.hold_schema_versions(names)
                assert held == {"known": version, names[1]: 0}
                applying = asyncio.create_task(apply())
                await eventually(partial(waiting, pool), lambda count: count == 1)
                assert await repository.hold_schema_versions(names) == held
            assert await applying
        async with catalogue.transaction() as first, catalogue.transaction() as second:
            # Rejecting waits for nobody else who rejects.
            assert await first.hold_schema_versions(["known"]) == {"known": 2}
            assert await second.hold_schema_versions(["known"]) == {"known": 2}


async def test_a_version_is_stored_before_rows_are_known_to_be_erased_or_not_at_all(
    postgres_dsn: str,
) -> None:
    async with connect(postgres_dsn, schema="ingestion", application_name="tests") as pool:
        await migrate(pool, "headrace.ingestion.storage")
        catalogue = PostgresCatalogue(pool)
        erasure = requested("e1", "known", "subject", NOW, NO_KEYS)
        async with catalogue.transaction() as repository:
            await repository.insert_dataset(DATASET)
            await repository.insert_erasure(erasure)

        async def rewritten() -> None:
            async with catalogue.transaction() as repository:
                await repository.update_erasure(
                    replace(erasure, state=ErasureState.REWRITTEN, begin_version=7, table_version=8)
                )

        async def insert(version: DatasetVersion) -> bool:
            async with catalogue.transaction() as repository:
                return await repository.insert_version(version)

        # Whoever asks for the versions when that is stored sees the one that was being cut.
        async with catalogue.transaction() as repository:
            assert await repository.insert_version(VERSION)
            erasing = asyncio.create_task(rewritten())
            await eventually(partial(waiting, pool), lambda count: count == 1)
        await erasing
        assert await catalogue.last_version("known") == VERSION
        # And whoever waited for it knows of the erasure.
        async with catalogue.transaction() as repository:
            await repository.update_erasure(replace(erasure, table_version=9))
            cutting = asyncio.create_task(insert(replace(VERSION, version=2, table_version=8)))
            await eventually(partial(waiting, pool), lambda count: count == 1)
        assert not await cutting
        assert await insert(replace(VERSION, version=2, table_version=9))


async def test_a_topic_is_one_datasets_whoever_asks_at_the_same_time(postgres_dsn: str) -> None:
    async with connect(postgres_dsn, schema="ingestion", application_name="tests") as pool:
        await migrate(pool, "headrace.ingestion.storage")
        catalogue = PostgresCatalogue(pool)
        scans = SourceTopic("clinic.scans", SourceFormat.AVRO)
        one, two, three = (replace(DATASET, name=name) for name in ("one", "two", "three"))

        async def insert(dataset: Dataset) -> bool:
            async with catalogue.transaction() as repository:
                return await repository.insert_dataset(dataset)

        async def update(dataset: Dataset, expected: Dataset) -> bool:
            async with catalogue.transaction() as repository:
                return await repository.update_dataset(dataset, expected)

        assert await insert(one)
        assert await insert(two)
        takers = [replace(each, source=scans, update_time=LATER.update_time) for each in (one, two)]
        async with catalogue.transaction() as repository:
            assert await repository.update_dataset(takers[0], one)
            other = asyncio.create_task(update(takers[1], two))
            third = asyncio.create_task(insert(replace(three, source=scans)))
            await eventually(partial(waiting, pool), lambda count: count == 2)
        assert not await other
        assert not await third
        assert await catalogue.feeds() == [Feed("one", scans)]
        assert (await catalogue.datasets(["one", "two"]))["one"] == takers[0]
        # Who keeps it is not in its own way, and who lets it go leaves it to others.
        kept = replace(takers[0], cut=Cut(5), update_time=LATER.update_time.replace(month=2))
        assert await update(kept, takers[0])
        assert await update(replace(kept, source=None, update_time=LATER.update_time), kept)
        assert await update(takers[1], two)
        assert await catalogue.feeds() == [Feed("two", scans)]
