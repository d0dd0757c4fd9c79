"""Waiting for conditions, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
# Far more than anything takes: machines that run tests are busy.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02
# Asking costs, too, and most where what is waited for needs the processor.
MAX_POLL_SECONDS = 0.1


async def eventually(
    ask: Callable[[], Awaitable[T]], accept: Callable[[T], bool], seconds: float = PATIENCE_SECONDS
) -> T:
    """Ask until the answer is accepted; fail with the last answer when time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = POLL_SECONDS
    while True:
        answer = await ask()
        if accept(answer):
            return answer
        if loop.time() > deadline:
            raise AssertionError(f"not within {seconds} s; the last answer was {answer!r}")
        await asyncio.sleep(pause)
        pause = min(1.2 * pause, MAX_POLL_SECONDS)
