"""One instance leads; when it loses its connection or stops, another one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from headrace.postgres import Pool, connect
from headrace.postgres.leader import lead

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.postgres.leader.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("headrace.postgres.leader.CHECK_SECONDS", 0.1)


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    async with connect(postgres_dsn, schema="tests", application_name="tests") as opened:
        yield opened


class Instances:
    """Who leads now; that two do is an error here, since nobody's connection hangs."""

    def __init__(self) -> None:
        self.leading: list[str] = []
        self.terms = 0
        self.most = 0

    def work(self, name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            self.leading.append(name)
            self.terms += 1
            self.most = max(self.most, len(self.leading))
            try:
                await asyncio.Future()
            finally:
                self.leading.remove(name)

        return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_leads_and_the_next_takes_over_when_it_stops(pool: Pool) -> None:
    instances = Instances()
    tasks = {name: asyncio.create_task(lead(pool, "tests", instances.work(name))) for name in ("a", "b", "c")}
    while tasks:
        await until(lambda: len(instances.leading) == 1)
        await stop(tasks.pop(instances.leading[0]))
    assert instances.terms == 3
    assert instances.most == 1


async def test_different_names_do_not_wait_for_each_other(pool: Pool) -> None:
    instances = Instances()
    tasks = [asyncio.create_task(lead(pool, name, instances.work(name))) for name in ("a", "b")]
    await until(lambda: sorted(instances.leading) == ["a", "b"])
    for task in tasks:
        await stop(task)


async def test_a_leader_that_loses_its_connection_stops_its_work_and_stands_again(pool: Pool) -> None:
    instances = Instances()
    task = asyncio.create_task(lead(pool, "tests", instances.work("a")))
    for term in range(1, 4):
        await until(lambda term=term: instances.terms == term and instances.leading == ["a"])  # type: ignore[misc]
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        await until(lambda term=term: instances.terms > term)  # type: ignore[misc]
    await stop(task)
    assert instances.most == 1


async def test_a_leader_that_is_stopped_as_it_loses_its_connection_stops(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.postgres.leader.CHECK_SECONDS", DEADLINE)
    instances = Instances()
    task = asyncio.create_task(lead(pool, "tests", instances.work("a")))
    await until(lambda: instances.leading == ["a"])
    await pool.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    task.cancel()
    await asyncio.wait([task], timeout=DEADLINE)
    assert task.cancelled()
    assert instances.terms == 1


async def test_a_leader_that_falls_silent_is_followed_by_another(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if its host had gone: nothing is asked on the lock's connection, and nothing closes it.
    monkeypatch.setattr("headrace.postgres.leader.CHECK_SECONDS", 10 * DEADLINE)
    monkeypatch.setattr("headrace.postgres.leader.SILENCE_SECONDS", 1)
    instances = Instances()
    tasks = [asyncio.create_task(lead(pool, "tests", instances.work(name))) for name in ("a", "b")]
    await until(lambda: instances.terms == 2)
    for task in tasks:
        await stop(task)


async def test_a_leader_that_has_nothing_to_do_is_not_silent(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.postgres.leader.SILENCE_SECONDS", 1)
    instances = Instances()
    task = asyncio.create_task(lead(pool, "tests", instances.work("a")))
    await until(lambda: instances.leading == ["a"])
    # In another session: what is as silent as a leader may not be, until the server ends it.
    async with pool.acquire() as silent:
        ended = asyncio.Event()
        silent.add_termination_listener(lambda _: ended.set())
        await silent.execute("SET idle_session_timeout = '2s'")
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
    assert instances.terms == 1
    await stop(task)


async def test_the_locks_connection_hears_a_channel_for_as_long_as_it_leads(pool: Pool) -> None:
    instances, heard = Instances(), list[str]()
    task = asyncio.create_task(
        lead(pool, "tests", instances.work("a"), listen=("tests_channel", heard.append))
    )
    for term in range(1, 3):
        await until(lambda term=term: instances.terms == term and instances.leading == ["a"])  # type: ignore[misc]
        await pool.execute("SELECT pg_notify('tests_channel', $1)", str(term))
        await until(lambda term=term: heard == [str(n) for n in range(1, term + 1)])  # type: ignore[misc]
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    await stop(task)


async def test_what_the_work_raises_is_raised_and_the_lock_given_back(pool: Pool) -> None:
    async def fails() -> None:
        raise RuntimeError("out of work")

    with pytest.raises(RuntimeError, match="out of work"):
        async with asyncio.timeout(DEADLINE):
            await lead(pool, "tests", fails)
    assert await pool.fetchval("SELECT pg_try_advisory_lock(hashtext('tests'))")
