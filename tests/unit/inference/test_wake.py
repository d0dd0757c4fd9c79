"""A request that finds its deployment nowhere waits, tells of itself once, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.errors import DeadlineExceeded, NotFound
from headrace.inference.domain.scaling import NOWHERE, Scale
from headrace.inference.use_cases.wake import WakeDeployment


class Routes:
    """What Envoy is told of one deployment, and who asked for it."""

    def __init__(self, scale: Scale | None) -> None:
        self.found = scale
        self.demands: list[str] = []
        self.told = 0
        self._change = asyncio.Event()

    def scale(self, deployment: str) -> Scale | None:
        return self.found

    async def changed(self) -> None:
        await self._change.wait()

    def update(self, scale: Scale | None) -> None:
        self.found = scale
        self._change.set()
        self._change = asyncio.Event()

    async def record_demand(self, deployment: str) -> None:
        self.demands.append(deployment)

    def waking(self, seconds: float = 60.0) -> WakeDeployment:
        def demanded() -> None:
            self.told += 1

        return WakeDeployment(cast("Any", self.work), self, demanded=demanded, seconds=seconds)

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(rows=self)


async def test_who_asks_waits_until_it_is_somewhere() -> None:
    routes = Routes(NOWHERE)
    waiting = asyncio.create_task(routes.waking()("m"))
    while not routes.demands:
        await asyncio.sleep(0)
    routes.update(NOWHERE)
    await asyncio.sleep(0)
    assert not waiting.done()
    routes.update(Scale(1, first=2))
    assert await asyncio.wait_for(waiting, 5) == Scale(1, first=2)
    assert (routes.demands, routes.told) == (["m"], 1)


async def test_what_is_somewhere_is_answered_at_once_and_nobody_is_told() -> None:
    routes = Routes(Scale(1))
    assert await routes.waking()("m") == Scale(1)
    assert (routes.demands, routes.told) == ([], 0)


async def test_what_nobody_deployed_or_somebody_deletes_meanwhile_is_not_found() -> None:
    with pytest.raises(NotFound):
        await Routes(None).waking()("m")
    routes = Routes(NOWHERE)
    waiting = asyncio.create_task(routes.waking()("m"))
    while not routes.demands:
        await asyncio.sleep(0)
    routes.update(None)
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 5)


async def test_it_does_not_wait_for_ever() -> None:
    with pytest.raises(DeadlineExceeded, match=r"was not loaded within 0\.01 s; it is still being loaded"):
        await Routes(NOWHERE).waking(0.01)("m")


async def test_a_database_that_does_not_answer_is_not_called_a_model_that_is_being_loaded() -> None:
    routes = Routes(NOWHERE)

    async def never(deployment: str) -> None:
        await asyncio.Future()

    routes.record_demand = never  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await routes.waking(0.01)("m")
    assert routes.told == 0
