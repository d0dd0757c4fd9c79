"""The router on a real PostgreSQL: it hears of what another instance changed, and of nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.support.waiting import eventually

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.rollouts import Plan, Rollout, RolloutState
from headrace.inference.domain.scaling import NOWHERE
from headrace.inference.domain.trials import Shadow
from headrace.inference.storage.changes import tell_of_changes
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.use_cases import route
from headrace.inference.use_cases.ports import DataPlane, Route, Rows, UnitOfWork
from headrace.inference.use_cases.route import Router
from headrace.postgres import Pool, connect
from headrace.postgres.migrations import migrate
from headrace.runtime.ids import new_id

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("a", "b")


class Envoys:
    """What they were told, and of how many deployments each time; all of them at first."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.told: list[frozenset[str]] = []
        # Weights of "a" as they were told, and whether with a trial.
        self.seen: set[tuple[tuple[tuple[int, int], ...], bool]] = set()

    def update(self, routes: Mapping[str, Route]) -> None:
        self.routes = dict(routes)
        self.told.append(frozenset(NAMES))

    def change(self, routes: Mapping[str, Route | None]) -> None:
        for name, now in routes.items():
            if now is None:
                self.routes.pop(name, None)
            else:
                self.routes[name] = now
                self.seen.add((tuple(sorted(now.weights.items())), now.trial is not None))
        self.told.append(frozenset(routes))

    def problem(self, deployment: str, route: Route) -> str:
        return ""


class ToldRouter(Router):
    """Says when it begins to be told of changes."""

    def __init__(self, work: UnitOfWork, data_plane: DataPlane) -> None:
        super().__init__(work, data_plane)
        self.is_told = asyncio.Event()

    def told(self) -> None:
        super().told()
        self.is_told.set()


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Pool]:
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        yield pool


@pytest.fixture
async def elsewhere(postgres_dsn: str, pool: Pool) -> AsyncIterator[PostgresUnitOfWork]:
    """Another instance, with a pool of its own."""
    async with connect(postgres_dsn, schema="inference", application_name="elsewhere") as other:
        work = PostgresUnitOfWork(other, "nowhere:1")
        async with work() as begun:
            for name in NAMES:
                made = await begun.rows.create_or_lock_deployment(name, name, Plan(), NOW)
                await begun.rows.put_served_version(a_version(name))
                await begun.rows.save_deployment(replace(made, traffic={1: 100}))
        yield work


@pytest.fixture
async def envoys(
    pool: Pool, elsewhere: PostgresUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Envoys]:
    """Of a router that looks at all deployments when it begins to be told of changes, and then never."""
    monkeypatch.setattr(route, "TOLD_PASS_SECONDS", 1e6)
    monkeypatch.setattr(route, "PASS_SECONDS", 1e6)
    envoys = Envoys()
    router = ToldRouter(PostgresUnitOfWork(pool, "nowhere:1"), envoys)
    tasks = [asyncio.create_task(tell_of_changes(pool, router))]
    await router.is_told.wait()
    tasks.append(asyncio.create_task(router.run()))
    await until(envoys, lambda: set(envoys.routes) == set(NAMES))
    envoys.told.clear()
    yield envoys
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def a_version(model: str) -> ServedVersion:
    return ServedVersion(model, 1, "file:///m", "00", (), (), (), b"", "")


async def until(envoys: Envoys, condition: Callable[[], bool]) -> None:
    async def now() -> bool:
        return condition()

    await eventually(now, bool)


async def weights(rows: Rows) -> None:
    await rows.save_deployment(replace(await rows.deployment("a"), traffic={1: 70, 2: 30}))


async def rollout(rows: Rows) -> None:
    plan = Plan(shadow=Shadow(100))
    await rows.change_plan("a", plan, NOW)
    await rows.put_rollout(Rollout(new_id(), "a", 1, 2, RolloutState.SHADOWING, "", NOW, NOW))


async def place(rows: Rows) -> None:
    await rows.record_placed("a", NOWHERE, NOW)


async def forget(rows: Rows) -> None:
    await rows.save_deployment(replace(await rows.deployment("a"), deleted=True))
    await rows.forget_deployment("a")


@pytest.mark.parametrize("change", [weights, rollout, place, forget])
async def test_a_change_by_another_instance_is_routed_at_once_and_alone(
    change: Callable[[Rows], Awaitable[None]], envoys: Envoys, elsewhere: PostgresUnitOfWork
) -> None:
    before = dict(envoys.routes)
    async with elsewhere() as begun:
        await change(begun.rows)
    await until(envoys, lambda: envoys.routes.get("a") != before["a"])
    assert envoys.routes["b"] is before["b"]
    assert set(envoys.told) == {frozenset({"a"})}


async def test_a_deployment_and_its_rollout_are_routed_as_of_one_moment(
    envoys: Envoys, elsewhere: PostgresUnitOfWork
) -> None:
    """Shares of one moment with the trial of another would send requests to nobody's wish."""
    trying = Rollout(new_id(), "a", 1, 2, RolloutState.PROGRESSING, "", NOW, NOW)
    over = replace(trying, state=RolloutState.ROLLED_BACK, end_time=NOW)
    async with elsewhere() as begun:
        await begun.rows.change_plan("a", Plan(sticky_header="x-user"), NOW)
    envoys.seen.clear()

    async def change() -> None:
        for _ in range(200):
            async with elsewhere() as begun:
                deployment = await begun.rows.deployment("a", lock=True)
                split = len(deployment.traffic) == 1
                traffic = {1: 90, 2: 10} if split else {1: 100}
                await begun.rows.save_deployment(replace(deployment, traffic=traffic))
                await begun.rows.put_rollout(trying if split else over)

    # So that one changes it while the other's change is being read.
    await asyncio.gather(change(), change(), change(), change())
    await until(envoys, lambda: envoys.routes["a"].weights == {1: 100})
    assert envoys.seen - {(((1, 100),), False)} == {(((1, 90), (2, 10)), True)}


async def test_many_changes_at_once_are_read_together(
    envoys: Envoys, elsewhere: PostgresUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "MOST_CHANGED", 1)
    async with elsewhere() as begun:
        for name in NAMES:
            deployment = await begun.rows.deployment(name)
            await begun.rows.save_deployment(replace(deployment, traffic={1: 70, 2: 30}))
    await until(envoys, lambda: all(route.weights == {1: 70, 2: 30} for route in envoys.routes.values()))
    assert set(envoys.told) == {frozenset(NAMES)}


async def test_while_nobody_tells_all_are_looked_at(
    pool: Pool, elsewhere: PostgresUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "TOLD_PASS_SECONDS", 1e6)
    envoys = Envoys()
    router = Router(PostgresUnitOfWork(pool, "nowhere:1"), envoys)
    router.told()
    running = asyncio.create_task(router.run())
    await until(envoys, lambda: set(envoys.routes) == set(NAMES))
    router.not_told()
    async with elsewhere() as begun:
        await weights(begun.rows)
    await until(envoys, lambda: envoys.routes["a"].weights == {1: 70, 2: 30})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
