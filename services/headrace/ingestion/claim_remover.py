"""Removes claimed payloads for their age, in the background."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from headrace.errors import one_line
from headrace.ingestion import metrics
from headrace.ingestion.use_cases.remove_claims import RemoveClaims

logger = logging.getLogger(__name__)


class ClaimRemover:
    """Looks for them again and again. For one instance at a time: it is the leader's work."""

    def __init__(self, remove: RemoveClaims, *, interval: timedelta) -> None:
        self._remove = remove
        self._interval = interval

    async def run(self) -> None:
        """Remove until cancelled."""
        while True:
            try:
                if removed := await self._remove():
                    logger.info("removed %d claimed payloads for their age", removed)
            except Exception as error:
                metrics.MAINTENANCE_FAILURES.inc()
                logger.warning("claimed payloads could not be removed, trying again: %s", one_line(error))
            await asyncio.sleep(self._interval.total_seconds())
