"""Waiting for an event, for so long."""

from __future__ import annotations

import asyncio

from headrace.runtime.waking import woken


async def test_it_returns_when_the_event_is_set_or_time_is_up() -> None:
    event = asyncio.Event()
    await woken(event, 0.001)
    assert not event.is_set()
    waiting = asyncio.create_task(woken(event, 60))
    await asyncio.sleep(0)
    event.set()
    await asyncio.wait_for(waiting, 5)


async def test_who_is_cancelled_while_it_is_woken_ends() -> None:
    event = asyncio.Event()

    async def work() -> None:
        while True:
            event.clear()
            await woken(event, 60)

    for turns in range(3):
        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()
        done, _ = await asyncio.wait([working], timeout=5)
        assert done == {working}
