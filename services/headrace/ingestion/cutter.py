"""Cuts versions in the background, when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import datetime, timedelta

from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.runtime.clock import Clock

logger = logging.getLogger(__name__)

_RETRY = timedelta(seconds=1)


class Cutter:
    """Looks at a dataset when rows came in, when its rows come of age, and at all of them now and then.

    The last is for rows whose writer died before it could look: `cut` asks the table, not a memory.
    """

    def __init__(self, catalogue: Catalogue, cut: CutVersions, *, clock: Clock, sweep_seconds: float) -> None:
        self._catalogue = catalogue
        self._cut = cut
        self._clock = clock
        self._sweep = timedelta(seconds=sweep_seconds)
        self._touched: set[str] = set()
        self._due: dict[str, datetime] = {}
        self._wake = asyncio.Event()
        self._failing = False

    def touched(self, datasets: Collection[str]) -> None:
        """Rows came into these datasets: look at them now."""
        self._touched.update(datasets)
        self._wake.set()

    async def run(self) -> None:
        """Cut versions until cancelled."""
        next_sweep = self._clock()
        while True:
            now = self._clock()
            if now >= next_sweep:
                await self._look_at_all()
                next_sweep = now + self._sweep
            else:
                await self._look_at_some(now)
            await self._sleep_until(min([next_sweep, *self._due.values()]))

    async def _sleep_until(self, moment: datetime) -> None:
        seconds = max(0.0, (moment - self._clock()).total_seconds())
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _look_at_all(self) -> None:
        self._wake.clear()
        self._touched.clear()
        try:
            datasets = await self._catalogue.self_cutting_datasets()
        except Exception as error:
            self._log_failure("datasets could not be listed", error)
            return
        for dataset in datasets:
            await self._look_at(dataset.name)

    async def _look_at_some(self, now: datetime) -> None:
        self._wake.clear()
        names = self._touched | {name for name, due in self._due.items() if due <= now}
        self._touched.clear()
        for name in sorted(names):
            await self._look_at(name)

    async def _look_at(self, name: str) -> None:
        self._due.pop(name, None)
        try:
            dataset = (await self._catalogue.datasets([name])).get(name)
            if dataset is None:
                return
            version, due = await self._cut.cut_if_due(dataset)
        except Exception as error:
            # Whatever keeps a version from being cut now, its rows are still there to be cut later.
            self._log_failure(f"no version of {name} could be cut", error)
            self._due[name] = self._clock() + _RETRY
            return
        self._failing = False
        if due is not None:
            self._due[name] = due
        if version is not None:
            logger.info("cut version %d of %s with %d rows", version.version, name, version.row_count)

    def _log_failure(self, what: str, error: Exception) -> None:
        # Where it happened once: an outage fails in the same way again and again.
        logger.warning("%s, trying again: %r", what, error, exc_info=not self._failing)
        self._failing = True
