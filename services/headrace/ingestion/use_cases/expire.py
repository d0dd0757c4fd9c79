"""What a dataset keeps for a time only, removed when that is over.

Each step is one transaction, of the table or of SQL, and none needs another one: whoever dies in between
leaves the rest to the next look. None is taken while the service's clock and the database's disagree: then
what is old is not known.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.use_cases.agreed_time import AgreedTime
from headrace.ingestion.use_cases.ports import Catalogue, TableExpiry
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

logger = logging.getLogger(__name__)

# What one transaction looks at, and removes at most: others wait for it.
_REJECTED: Final = 1000
_VERSIONS: Final = 500


class Expire:
    """The use cases. One at a time for a dataset, beside neither its table's maintenance nor an erasure."""

    def __init__(self, catalogue: Catalogue, tables: TableExpiry, *, clock: Clock) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._now = AgreedTime(catalogue, clock)

    async def rejected(self, dataset: Dataset) -> int:
        """Remove rejected events that were done with long enough ago; answer how many."""
        age = dataset.retention.rejected
        if age is None:
            return 0
        before = await self._now() - age
        after, total = 0, 0
        while page := await self._catalogue.rejected_page(dataset.name, after, _REJECTED):
            async with self._catalogue.transaction() as repository:
                removed = await repository.expire_rejected(dataset.name, after, page.last, before)
            fault_point("ingestion.after-expire-rejected")
            for state, count in removed.items():
                metrics.EXPIRED_REJECTED.labels(dataset.name, state.value).inc(count)
                total += count
            if page.newest >= before:
                break
            after = page.last
        if total:
            logger.info("removed %d rejected events of %s, as old as %s", total, dataset.name, before)
        return total

    async def versions(self, dataset: Dataset) -> int:
        """Forget versions that are old enough; answer how many. Who reads one then can for a while."""
        age = dataset.retention.versions
        if age is None:
            return 0
        now = await self._now()
        total, forgotten = 0, _VERSIONS
        while forgotten == _VERSIONS:
            async with self._catalogue.transaction() as repository:
                numbers = await repository.expire_versions(dataset.name, now - age, now, _VERSIONS)
            fault_point("ingestion.after-expire-versions")
            forgotten = len(numbers)
            total += forgotten
            metrics.EXPIRED_VERSIONS.labels(dataset.name).inc(forgotten)
            if numbers:
                logger.info("forgot versions %d to %d of %s", numbers[0], numbers[-1], dataset.name)
        return total

    async def rows(self, dataset: Dataset) -> int:
        """Take old rows out of the table; answer how many."""
        if dataset.retention.rows is None:
            return 0
        before = dataset.retention.oldest_event_time(await self._now())
        assert before is not None
        total, more = 0, True
        while more:
            expired = await asyncio.to_thread(self._tables.expire_rows, dataset, before)
            metrics.EXPIRED_ROWS.labels(dataset.name).inc(expired.rows)
            total, more = total + expired.rows, expired.more
        if total:
            logger.info("took %d rows out of %s, from before %s", total, dataset.name, before)
        return total
