"""Work beside other work, which ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def alongside(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run `work` beside the block; both have ended when this is left.

    Where the block fails, the work is cancelled. Raises what the block raised, or else the work.
    """
    task = asyncio.create_task(work)
    try:
        yield
        await task
    finally:
        task.cancel()
        # What it raised was raised, or the block's error is why it was cancelled.
        await asyncio.gather(task, return_exceptions=True)
