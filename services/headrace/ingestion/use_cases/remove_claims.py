"""Payloads that no event in the topic claims any more, out of the object store.

A payload must be there for as long as its event can be read from the topic. So they go by age, some time
after the topic's retention. Those of rejected events stay while the events wait for a decision.
"""

from __future__ import annotations

from datetime import timedelta

from headrace.ingestion import metrics
from headrace.ingestion.use_cases.agreed_time import AgreedTime
from headrace.ingestion.use_cases.ports import Catalogue, ClaimedPayloads
from headrace.runtime.clock import Clock


class RemoveClaims:
    """The use case."""

    def __init__(
        self, catalogue: Catalogue, payloads: ClaimedPayloads, *, clock: Clock, retention: timedelta
    ) -> None:
        self._catalogue = catalogue
        self._payloads = payloads
        self._now = AgreedTime(catalogue, clock)
        self._retention = retention

    async def __call__(self) -> int:
        """Remove them, and answer how many. Raises whatever the database or the store raises."""
        before = await self._now() - self._retention
        # No event with an older payload is read and rejected after this: the topic does not have it any more.
        in_use = await self._catalogue.claims_in_use(before)
        removed = 0
        async for path in self._payloads.older(before):
            if path not in in_use:
                await self._payloads.remove(path)
                metrics.REMOVED_CLAIMS.inc()
                removed += 1
        return removed
