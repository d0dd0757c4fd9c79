"""Looks after the tables in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Final

from headrace.errors import one_line
from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.use_cases.maintain_table import MaintainTable
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.runtime.clock import Clock

logger = logging.getLogger(__name__)

_PAGE: Final = 100


class Maintainer:
    """Looks at each table in turn, again and again. For one instance at a time: it is the leader's work."""

    def __init__(
        self,
        catalogue: Catalogue,
        maintain: MaintainTable,
        *,
        clock: Clock,
        interval_seconds: float,
        vacuum_hours: float,
        tables: asyncio.Lock,
    ) -> None:
        """`tables`: held while a table is maintained, for nobody else may rewrite one then."""
        self._catalogue = catalogue
        self._maintain = maintain
        self._clock = clock
        self._tables = tables
        self._interval_seconds = interval_seconds
        self._vacuum_interval = timedelta(hours=vacuum_hours)
        self._next_vacuum: dict[str, datetime] = {}
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Maintain tables until cancelled."""
        while True:
            await self.look_at_all()
            await asyncio.sleep(self._interval_seconds)

    async def look_at_all(self) -> None:
        """One round. What keeps a table from being maintained keeps no other one, and is tried again."""
        try:
            async for dataset in self._datasets():
                async with self._tables:
                    await self._look_at(dataset)
        except Exception as error:
            self._failed("the datasets", error)
        else:
            self._failing.discard("the datasets")

    async def _datasets(self) -> AsyncIterator[Dataset]:
        after = ""
        while page := await self._catalogue.list_datasets(after, _PAGE):
            for dataset in page:
                yield dataset
            after = page[-1].name

    async def _look_at(self, dataset: Dataset) -> None:
        try:
            merged = await self._maintain.merge_files(dataset)
            if merged:
                logger.info("merged %d files of %s", merged, dataset.name)
            if self._clock() >= self._next_vacuum.get(dataset.name, dataset.create_time):
                removed = await self._maintain.remove_unneeded_files(dataset)
                self._next_vacuum[dataset.name] = self._clock() + self._vacuum_interval
                if removed:
                    logger.info("removed %d files of %s that nobody needs", removed, dataset.name)
        except Exception as error:
            self._failed(dataset.name, error)
        else:
            self._failing.discard(dataset.name)

    def _failed(self, what: str, error: Exception) -> None:
        metrics.MAINTENANCE_FAILURES.inc()
        # Where it happened once: an outage fails in the same way again and again.
        logger.warning(
            "%s could not be maintained, trying again: %s",
            what,
            one_line(error),
            exc_info=what not in self._failing,
        )
        self._failing.add(what)
