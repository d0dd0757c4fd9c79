"""Waiting for an event, and not for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def woken(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds.

    Unlike `asyncio.wait_for`, which in Python 3.11 forgets that it was cancelled where the event is set at
    the same moment: whoever stops a service would wait for it for ever.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
