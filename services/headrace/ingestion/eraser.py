"""Carries out erasures in the background."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from headrace.errors import one_line
from headrace.ingestion.domain.erasure import Erasure
from headrace.ingestion.use_cases.erase_subject import EraseSubject
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.postgres.leader import RETRY_SECONDS

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 5.0
# Each attempt reads the keys of all files.
_LONGEST_PAUSE_SECONDS: Final = 60.0


class Eraser:
    """Carries out what was requested, one after the other. For one instance at a time, and never beside the
    maintenance of tables: that waits for `tables`, too."""

    def __init__(self, catalogue: Catalogue, erase: EraseSubject, tables: asyncio.Lock) -> None:
        self._catalogue = catalogue
        self._erase = erase
        self._tables = tables

    async def run(self) -> None:
        """Erase until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                failed = await self.look()
            except Exception as error:
                logger.warning("erasures could not be looked for, trying again: %s", one_line(error))
                failed = True
            await asyncio.sleep(pause if failed else RETRY_SECONDS)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS) if failed else _FIRST_PAUSE_SECONDS

    async def look(self) -> bool:
        """Carry out what waits; answer whether some of it did not end, and is to be tried again."""
        failed = False
        for erasure in await self._catalogue.open_erasures():
            try:
                async with self._tables:
                    done = await self._erase(erasure)
                logger.info("erased %d rows of %s (erasure %s)", done.row_count, done.dataset, done.id)
            except Exception as error:
                failed = True
                await self._failed(erasure, error)
        return failed

    async def _failed(self, erasure: Erasure, error: Exception) -> None:
        problem = one_line(error)
        logger.warning("erasure %s did not end, trying again: %s", erasure.id, problem)
        async with self._catalogue.transaction() as repository:
            await repository.note_problem(erasure.id, problem)
