"""Care for one dataset's table, so that it stays quick to read however small its commits are."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.use_cases.agreed_time import AgreedTime
from headrace.ingestion.use_cases.ports import Catalogue, TableMaintenance
from headrace.runtime.clock import Clock


class MaintainTable:
    """The use case. Neither part changes a row, and either may be repeated, or die, at any moment."""

    def __init__(
        self, catalogue: Catalogue, tables: TableMaintenance, *, clock: Clock, reader_hours: int
    ) -> None:
        """`reader_hours`: how long files of forgotten versions stay, for jobs that read one then."""
        self._catalogue = catalogue
        self._tables = tables
        self._now = AgreedTime(catalogue, clock)
        self._reader_time = timedelta(hours=reader_hours)

    async def merge_files(self, dataset: Dataset) -> int:
        """Merge small files until there are few; answer how many were merged."""
        total = 0
        while True:
            merge = await asyncio.to_thread(self._tables.merge, dataset)
            metrics.TABLE_FILES.labels(dataset.name).set(merge.files)
            if not merge.merged:
                return total
            metrics.MERGED_FILES.labels(dataset.name).inc(merge.merged)
            metrics.MERGED_BYTES.labels(dataset.name).inc(merge.size)
            total += merge.merged

    async def remove_unneeded_files(self, dataset: Dataset) -> int:
        """Remove files that no version and no reader needs; answer how many.

        Raises FailedPrecondition CLOCKS_DISAGREE.
        """
        cut = await self._catalogue.table_versions(dataset.name, await self._now() - self._reader_time)
        removed = await asyncio.to_thread(self._tables.remove_unneeded, dataset, cut)
        metrics.REMOVED_FILES.labels(dataset.name).inc(removed)
        return removed
