"""Looks at rejected events in the background."""

from __future__ import annotations

import asyncio
import logging

from headrace.ingestion import metrics
from headrace.ingestion.use_cases.watch_rejects import WatchRejects

logger = logging.getLogger(__name__)

_GAUGES = (metrics.REJECT_SHARE, metrics.REJECT_ALERT, metrics.CUT_HELD)


class RejectWatch:
    """Looks at every dataset with rejected events now and then."""

    def __init__(self, watch: WatchRejects, *, seconds: float) -> None:
        self._watch = watch
        self._seconds = seconds
        self._seen: set[str] = set()
        self._failing = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._look()
            except Exception as error:
                # Whatever keeps it from looking now, what it looks at stays where it is. Where it happened
                # once: an outage fails in the same way again and again.
                logger.warning("rejected events were not looked at: %r", error, exc_info=not self._failing)
                self._failing = True
            else:
                self._failing = False
            await asyncio.sleep(self._seconds)

    async def _look(self) -> None:
        pending = await self._watch.pending()
        names = {counted.dataset.name for counted in pending}
        for gone in self._seen - names:
            for gauge in _GAUGES:
                gauge.remove(gone)
        self._seen = names
        failures = []
        for counted in pending:
            try:
                await self._watch.look_at(counted)
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(pending)} datasets", failures)
