"""Forgets erasures in the background, once no prediction from before them can come any more."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from headrace.errors import one_line
from headrace.inference.use_cases.erase_predictions import ForgetErasures

logger = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 3600.0


class Forgetter:
    """Looks for them again and again. Any number of instances may."""

    def __init__(self, forget: ForgetErasures) -> None:
        self._forget = forget

    async def run(self) -> None:
        """Forget until cancelled."""
        while True:
            try:
                if forgotten := await self._forget():
                    logger.info("forgot %d erasures for their age", forgotten)
            except Exception as error:
                logger.warning("erasures could not be forgotten, trying again: %s", one_line(error))
            await asyncio.sleep(_PAUSE_SECONDS)
