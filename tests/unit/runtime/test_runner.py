from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headrace.runtime.runner import Runner


@asynccontextmanager
async def recorded(events: list[str], name: str) -> AsyncIterator[str]:
    events.append(f"open {name}")
    try:
        yield name
    finally:
        events.append(f"close {name}")


async def test_closes_in_reverse_order_tasks_in_their_place() -> None:
    runner, events = Runner(), list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("stop task")

    assert await runner.enter(recorded(events, "pool")) == "pool"
    task = runner.spawn(work, "task")
    await runner.enter(recorded(events, "server"))
    await asyncio.sleep(0)
    await runner.close(1.0)

    assert events == ["open pool", "open server", "close server", "stop task", "close pool"]
    assert task.cancelled()
    assert runner.failure is None


async def test_what_is_opened_at_once_does_not_wait_for_each_other() -> None:
    runner, events = Runner(), list[str]()
    both_open = asyncio.Barrier(2)

    @asynccontextmanager
    async def meets(name: str) -> AsyncIterator[str]:
        await both_open.wait()
        async with recorded(events, name):
            yield name

    async with asyncio.timeout(5):
        assert await runner.enter_at_once([meets("one"), meets("other")]) == ["one", "other"]
    await runner.close(1.0)

    assert sorted(events) == ["close one", "close other", "open one", "open other"]


async def test_of_what_is_opened_at_once_the_first_error_ends_the_rest() -> None:
    runner, events = Runner(), list[str]()

    @asynccontextmanager
    async def waits() -> AsyncIterator[None]:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("given up")
        yield

    @asynccontextmanager
    async def fails() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        raise OSError("no broker")
        yield

    with pytest.raises(OSError, match="no broker"):
        await runner.enter_at_once([recorded(events, "first"), waits(), fails()])
    await runner.close(1.0)

    assert events == ["open first", "given up", "close first"]


async def test_a_task_that_raises_stops_and_fails_the_service() -> None:
    runner = Runner()

    async def work() -> None:
        raise RuntimeError("broken")

    runner.health.set_ready("other", ready=True)
    runner.spawn(work(), "consumer")
    await asyncio.wait_for(runner.stopping.wait(), 1.0)

    assert str(runner.failure) == "broken"
    assert not runner.health.ready
    assert runner.health.components["consumer"].message == "RuntimeError: broken"
    await runner.close(1.0)


async def test_a_cancellation_that_another_error_took_the_place_of_is_repeated() -> None:
    runner = Runner()
    events: list[str] = []

    async def work() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("interrupted")
                if len(events) == 2:
                    raise

    task = runner.spawn(work, "task")
    await asyncio.sleep(0)
    await runner.close(5.0)

    assert task.cancelled()
    assert events == ["interrupted", "interrupted"]
    assert runner.failure is None


async def test_a_task_that_returns_changes_nothing() -> None:
    runner = Runner()

    async def work() -> None:
        return

    await runner.spawn(work, "once")
    assert not runner.stopping.is_set()
    await runner.close(1.0)
    assert runner.failure is None


async def test_a_part_that_does_not_close_in_time_is_left_and_the_others_are_closed() -> None:
    runner, events = Runner(), list[str]()

    @asynccontextmanager
    async def stuck() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    await runner.enter(recorded(events, "pool"))
    await runner.enter(stuck())
    await asyncio.wait_for(runner.close(0.01), 5.0)

    assert events == ["open pool", "close pool"]
    assert isinstance(runner.failure, TimeoutError)


async def test_a_close_that_raises_fails_the_service_and_the_others_are_closed() -> None:
    runner, events = Runner(), list[str]()

    async def explode() -> None:
        raise OSError("gone")

    await runner.enter(recorded(events, "pool"))
    runner.on_stop(explode, "explosive")
    await runner.close(1.0)

    assert events == ["open pool", "close pool"]
    assert isinstance(runner.failure, OSError)


async def test_readiness_needs_every_component_and_no_drain() -> None:
    health = Runner().health
    changes: list[bool] = []
    unlisten = health.listen(changes.append)

    assert not health.ready
    health.set_ready("a", ready=True)
    health.set_ready("b", ready=False, message="waits for the broker")
    assert not health.ready
    health.set_ready("b", ready=True)
    health.drain()
    assert not health.ready
    unlisten()
    assert changes == [True, False, True, False]


@pytest.mark.parametrize("times", [1, 2])
async def test_close_may_be_repeated(times: int) -> None:
    runner, events = Runner(), list[str]()
    await runner.enter(recorded(events, "pool"))
    for _ in range(times):
        await runner.close(1.0)
    assert events == ["open pool", "close pool"]
