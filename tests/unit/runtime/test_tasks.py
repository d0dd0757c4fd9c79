"""Work beside a block: both have ended when it is left, and no error goes unseen."""

from __future__ import annotations

import asyncio

import pytest

from headrace.runtime.tasks import alongside


async def test_the_block_is_left_when_the_work_is_done() -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await may_end.wait()
        ended = True

    async with alongside(work()):
        await begun.wait()
        may_end.set()
        assert not ended
    assert ended


async def test_the_works_failure_is_raised_behind_the_block() -> None:
    async def work() -> None:
        raise ConnectionError("no broker")

    reached = False

    async def both() -> None:
        nonlocal reached
        async with alongside(work()):
            await asyncio.sleep(0)
            reached = True

    with pytest.raises(ConnectionError, match="no broker"):
        await both()
    assert reached


async def test_a_block_that_fails_cancels_the_work_and_raises_its_own_error() -> None:
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def both() -> None:
        async with alongside(work()):
            await asyncio.sleep(0)
            raise OSError("no store")

    with pytest.raises(OSError, match="no store"):
        await both()
    assert cancelled


async def test_a_cancellation_behind_the_block_reaches_the_work() -> None:
    waiting, cancelled = asyncio.Event(), False

    async def work() -> None:
        nonlocal cancelled
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def both() -> None:
        async with alongside(work()):
            pass

    task = asyncio.create_task(both())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled
