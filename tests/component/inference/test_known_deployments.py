"""Deployments that are read again: only those that have changed are made anew, and none is missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest

from headrace.api.registry.v1 import registry_pb2
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.rollouts import Plan, Rollout, RolloutState
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.use_cases.deployments import Deployments
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id

if TYPE_CHECKING:
    from headrace.inference.use_cases.table_ports import LogTables

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("a", "b", "c")


def a_version(model: str, number: int) -> ServedVersion:
    signature = registry_pb2.Signature(classes=[f"class-{number}"]).SerializeToString()
    return ServedVersion(model, number, "file:///m", "00", (), (), (f"class-{number}",), signature, "")


def a_rollout(name: str, version: int) -> Rollout:
    return Rollout(new_id(), name, 0, version, RolloutState.LOADING, "", NOW, NOW)


@pytest.fixture
async def work(postgres_dsn: str) -> AsyncIterator[PostgresUnitOfWork]:
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        work = PostgresUnitOfWork(pool, "nowhere:1")
        async with work() as begun:
            for name in NAMES:
                await begun.rows.create_or_lock_deployment(name, name, Plan(), NOW)
        yield work


async def read(work: PostgresUnitOfWork) -> dict[str, Deployment]:
    async with work() as begun:
        return {deployment.name: deployment for deployment in await begun.rows.all_deployments()}


async def same(before: dict[str, Deployment], work: PostgresUnitOfWork) -> set[str]:
    """Those that the next reading has as they were."""
    return {name for name, deployment in (await read(work)).items() if before.get(name) is deployment}


async def test_what_has_changed_is_read_and_nothing_else(work: PostgresUnitOfWork) -> None:
    first = await read(work)
    assert list(first) == list(NAMES)
    assert await same(first, work) == set(NAMES)
    async with work() as begun:
        await begun.rows.save_deployment(replace(first["b"], message="changed"))
    assert await same(first, work) == {"a", "c"}
    assert (await read(work))["b"].message == "changed"


async def test_a_deployments_last_rollout_is_read_with_it(work: PostgresUnitOfWork) -> None:
    first = await read(work)
    rollout = a_rollout("a", 1)
    async with work() as begun:
        await begun.rows.put_rollout(rollout)
    assert await same(first, work) == {"b", "c"}
    assert (await read(work))["a"].rollout == rollout
    going_on = replace(rollout, state=RolloutState.PROGRESSING, weight=100)
    async with work() as begun:
        await begun.rows.put_rollout(going_on)
    assert (await read(work))["a"].rollout == going_on
    async with work() as begun:
        await begun.rows.revive_deployment("a")
    assert (await read(work))["a"].rollout is None


async def test_what_was_removed_is_gone_and_what_is_made_again_is_new(work: PostgresUnitOfWork) -> None:
    first = await read(work)
    async with work() as begun:
        await begun.rows.save_deployment(replace(first["c"], deleted=True))
        await begun.rows.forget_deployment("c")
    assert set(await read(work)) == {"a", "b"}
    async with work() as begun:
        await begun.rows.create_or_lock_deployment("c", "another", Plan(), NOW)
    assert (await read(work))["c"].model == "another"


async def test_what_a_transaction_saw_that_failed_is_not_remembered(work: PostgresUnitOfWork) -> None:
    first = await read(work)

    async def fail() -> None:
        async with work() as begun:
            await begun.rows.save_deployment(replace(first["b"], message="never"))
            assert [d.message for d in await begun.rows.all_deployments()] == ["", "never", ""]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await read(work))["b"] == first["b"]


async def test_versions_are_those_of_each_model_oldest_first(work: PostgresUnitOfWork) -> None:
    async def versions() -> dict[str, list[ServedVersion]]:
        async with work() as begun:
            return await begun.rows.all_served_versions()

    assert await versions() == {}
    expected = {"m": [a_version("m", number) for number in (2, 10)], "n": [a_version("n", 1)]}
    async with work() as begun:
        for version in (expected["m"][1], expected["n"][0], expected["m"][0]):
            await begun.rows.put_served_version(version)
    first = await versions()
    assert first == expected
    assert (await versions())["m"][0] is first["m"][0]


async def test_a_deployment_and_its_rollout_are_read_as_of_one_moment(work: PostgresUnitOfWork) -> None:
    rollout = a_rollout("a", 1)

    async def change() -> None:
        """As each change of a rollout: with the traffic that follows from it."""
        for number in range(300):
            async with work() as begun:
                locked = await begun.rows.deployment("a", lock=True)
                assert (locked.rollout.message if locked.rollout else "") == locked.message
                await begun.rows.save_deployment(replace(locked, message=str(number)))
                await begun.rows.put_rollout(replace(rollout, message=str(number)))

    deployments = Deployments(work, utc_now, cast("LogTables", None))

    async def seen() -> set[tuple[str, str]]:
        """What the deployment says, and its rollout."""
        found = set()
        while not changing.done():
            for one, _ in [await deployments.get("a"), *await deployments.list_all("", 1)]:
                found.add((one.message, one.rollout.message if one.rollout else ""))
        return found

    changing = asyncio.create_task(change())
    found = await seen()
    await changing
    assert len(found) > 10
    assert {said for said in found if said[0] != said[1]} == set()
