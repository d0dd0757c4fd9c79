"""The pool, the unit of work and the migrations on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from tests.support.packages import package_with_migrations

from headrace.embedded.parts.process import free_port
from headrace.postgres import Pool, connect, transaction
from headrace.postgres.migrations import MigrationError, migrate
from headrace.runtime.outage import is_outage

FIRST = {"0001_things.sql": "CREATE TABLE things (id int PRIMARY KEY, made timestamptz DEFAULT now());"}


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    async with connect(postgres_dsn, schema="tests", application_name="tests") as opened:
        yield opened


async def test_a_connection_works_in_its_schema_in_utc_and_with_plain_json(pool: Pool) -> None:
    assert await pool.fetchval("SELECT current_schema()") == "tests"
    assert await pool.fetchval("SHOW timezone") == "UTC"
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    assert await pool.fetchval("SELECT $1::jsonb", value) == value
    assert await pool.fetchval("SELECT $1::jsonb IS NULL", None)
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    assert await pool.fetchval("SELECT $1::timestamptz", moment) == moment


async def test_schemas_do_not_see_each_other(postgres_dsn: str) -> None:
    async with (
        connect(postgres_dsn, schema="one", application_name="tests") as one,
        connect(postgres_dsn, schema="two", application_name="tests") as two,
    ):
        await one.execute("CREATE TABLE things (id int)")
        with pytest.raises(asyncpg.UndefinedTableError):
            await two.fetch("SELECT * FROM things")


async def test_instances_that_start_together_create_the_schema_once(postgres_dsn: str) -> None:
    async with AsyncExitStack() as stack:
        pools = await asyncio.gather(
            *(
                stack.enter_async_context(
                    connect(postgres_dsn, schema="tests", application_name=f"tests-{n}")
                )
                for n in range(5)
            )
        )
        assert {await pool.fetchval("SELECT current_schema()") for pool in pools} == {"tests"}


async def test_a_server_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.postgres.pool.CONNECT_SECONDS", 0.3)
    with pytest.raises(OSError, match=r"refused|failed"):
        async with connect(
            f"postgresql://127.0.0.1:{free_port()}/none", schema="tests", application_name="tests"
        ):
            pass


async def test_a_unit_of_work_is_whole_or_not_at_all(pool: Pool) -> None:
    await pool.execute("CREATE TABLE things (id int)")

    async def fails() -> None:
        async with transaction(pool) as connection:
            await connection.execute("INSERT INTO things VALUES (1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fails()
    async with transaction(pool) as connection:
        await connection.execute("INSERT INTO things VALUES (2)")
    assert [row["id"] for row in await pool.fetch("SELECT id FROM things")] == [2]


async def test_migrations_are_applied_once_and_new_ones_later(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, files = package_with_migrations(tmp_path, FIRST, monkeypatch)
    service = package.removesuffix(".storage")
    assert await migrate(pool, package) == [
        "headrace.postgres/0001_outbox_and_inbox.sql",
        "headrace.postgres/0002_outbox_of_any_bytes.sql",
        f"{service}/0001_things.sql",
    ]
    assert await migrate(pool, package) == []
    (files / "0002_names.sql").write_text("ALTER TABLE things ADD COLUMN name text;")
    assert await migrate(pool, package) == [f"{service}/0002_names.sql"]
    await pool.execute("INSERT INTO things (id, name) VALUES (1, 'a')")


async def test_instances_that_start_together_migrate_once(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"0001_things.sql": FIRST["0001_things.sql"] + "SELECT pg_sleep(0.2);"}
    package, _ = package_with_migrations(tmp_path, slow, monkeypatch)
    applied = await asyncio.gather(*(migrate(pool, package) for _ in range(4)))
    assert sorted(len(names) for names in applied) == [0, 0, 0, 3]


async def test_a_migration_that_fails_leaves_nothing_and_is_tried_again(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, files = package_with_migrations(
        tmp_path, {"0001_things.sql": FIRST["0001_things.sql"] + "SELECT 1/0;"}, monkeypatch
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(pool, package)
    assert await pool.fetchval("SELECT to_regclass('things') IS NULL")
    (files / "0001_things.sql").write_text(FIRST["0001_things.sql"])
    assert len(await migrate(pool, package)) == 1


async def test_an_applied_migration_must_not_change(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, files = package_with_migrations(tmp_path, FIRST, monkeypatch)
    await migrate(pool, package)
    (files / "0001_things.sql").write_text("CREATE TABLE other (id int);")
    with pytest.raises(MigrationError, match="was changed after it was applied"):
        await migrate(pool, package)


async def test_a_database_that_is_ahead_of_the_code_is_refused(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, files = package_with_migrations(
        tmp_path, {**FIRST, "0002_names.sql": "ALTER TABLE things ADD COLUMN name text;"}, monkeypatch
    )
    await migrate(pool, package)
    (files / "0002_names.sql").unlink()
    with pytest.raises(MigrationError, match=r"0002_names\.sql, which this version does not know"):
        await migrate(pool, package)


async def test_a_transaction_in_which_nothing_happens_loses_its_rows(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.postgres.pool.IDLE_IN_TRANSACTION_SECONDS", 1)
    async with connect(postgres_dsn, schema="tests", application_name="tests") as pool:
        await pool.execute("CREATE TABLE held (id int PRIMARY KEY)")
        async with pool.acquire() as paused:
            lost = asyncio.Event()
            paused.add_termination_listener(lambda _: lost.set())
            await paused.execute("BEGIN")
            await paused.execute("INSERT INTO held VALUES (1)")
            async with asyncio.timeout(20):
                # Waits until the first one is committed or gone.
                await pool.execute("INSERT INTO held VALUES (1)")
                await lost.wait()


async def test_a_transaction_whose_session_the_server_ends_is_an_outage(
    pool: Pool, postgres_dsn: str
) -> None:
    """Whichever way it shows: in a statement, in the commit, or where the connection is given back."""

    async def loses_its_session(*, asks_again: bool, own_transaction: bool) -> None:
        async with pool.acquire() as connection:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            async with connection.transaction() if own_transaction else nullcontext():
                if not own_transaction:
                    await connection.execute("BEGIN")
                await other.execute("SELECT pg_terminate_backend($1, 10000)", connection.get_server_pid())
                async with asyncio.timeout(20):
                    await lost.wait()
                if asks_again:
                    await connection.execute("SELECT 1")

    other = await asyncpg.connect(postgres_dsn)
    try:
        for asks_again, own_transaction in ((True, True), (False, True), (True, False)):
            with pytest.raises(Exception, match=r"clos|released|failed") as raised:
                await loses_its_session(asks_again=asks_again, own_transaction=own_transaction)
            assert is_outage(raised.value)
    finally:
        await other.close()


@pytest.mark.parametrize("plan_anew", [True, False])
async def test_statements_are_planned_for_tables_as_they_are(postgres_dsn: str, *, plan_anew: bool) -> None:
    settings = {"schema": "tests", "application_name": "tests", "max_size": 1}
    async with connect(postgres_dsn, **settings, plan_anew=plan_anew) as pool:
        await pool.execute("CREATE TABLE things (id int PRIMARY KEY)")
        for _ in range(10):
            await pool.fetch("SELECT * FROM things WHERE id = $1", 1)
        kept = await pool.fetchval(
            "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT * FROM things%'"
        )
    assert (kept == 0) == plan_anew
