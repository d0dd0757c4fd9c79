"""Forgets in the background what is old: erasures, predictions, and requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.errors import one_line

logger = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 3600.0


class Forgetter:
    """Looks for them again and again. Any number of instances may."""

    def __init__(self, what: str, forget: Callable[[], Awaitable[int]]) -> None:
        """`what`: those of which `forget` answers how many it forgot, for the log."""
        self._what = what
        self._forget = forget

    async def run(self) -> None:
        """Forget until cancelled."""
        while True:
            try:
                if forgotten := await self._forget():
                    logger.info("forgot %d %s for their age", forgotten, self._what)
            except Exception as error:
                logger.warning("%s could not be forgotten, trying again: %s", self._what, one_line(error))
            await asyncio.sleep(_PAUSE_SECONDS)
