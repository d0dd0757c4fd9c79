"""Waiting with a deadline that says what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.1

T = TypeVar("T")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Run the block, at most so long. Raises TimeoutError saying what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"waited {seconds:.0f} s for {what}") from None


async def until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool], what: str) -> T:
    """Ask again and again until the answer is enough. Raises TimeoutError saying what was waited for."""
    async with within(DEADLINE_SECONDS, what):
        while not enough(answer := await ask()):
            await asyncio.sleep(POLL_SECONDS)
    return answer
