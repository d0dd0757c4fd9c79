"""Removes in the background what datasets keep for a time only."""

from __future__ import annotations

import asyncio
import logging

from headrace.errors import one_line
from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.use_cases.expire import Expire
from headrace.ingestion.use_cases.ports import Catalogue

logger = logging.getLogger(__name__)


class Expirer:
    """Looks at each dataset that has a retention, again and again. For one instance at a time."""

    def __init__(
        self, catalogue: Catalogue, expire: Expire, *, interval_seconds: float, tables: asyncio.Lock
    ) -> None:
        """`tables`: held while a dataset is looked at, for nobody else may rewrite a table then."""
        self._catalogue = catalogue
        self._expire = expire
        self._interval_seconds = interval_seconds
        self._tables = tables
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look_at_all()
            await asyncio.sleep(self._interval_seconds)

    async def look_at_all(self) -> None:
        """One round. What fails keeps nothing else from being removed, and is tried again in the next one."""
        try:
            datasets = await self._catalogue.retaining_datasets()
        except Exception as error:
            self._failed("datasets", error)
            return
        self._failing.discard("datasets")
        for dataset in datasets:
            await self._look_at(dataset)

    async def _look_at(self, dataset: Dataset) -> None:
        for what, remove in (
            ("rejected events", self._expire.rejected),
            ("versions", self._expire.versions),
            ("rows", self._expire.rows),
        ):
            subject = f"{what} of {dataset.name}"
            try:
                async with self._tables:
                    await remove(dataset)
            except Exception as error:
                self._failed(subject, error)
            else:
                self._failing.discard(subject)

    def _failed(self, subject: str, error: Exception) -> None:
        metrics.EXPIRY_FAILURES.inc()
        # Where it happened once: an outage fails in the same way again and again.
        logger.warning(
            "old %s could not be removed, trying again: %s",
            subject,
            one_line(error),
            exc_info=subject not in self._failing,
        )
        self._failing.add(subject)
