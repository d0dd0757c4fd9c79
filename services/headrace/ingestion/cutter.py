"""Cuts versions in the background, when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import timedelta

from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.ports import Catalogue

logger = logging.getLogger(__name__)

_RETRY = timedelta(seconds=1)


class Cutter:
    """Looks at a dataset when rows came in, when its rows come of age, and at all of them now and then.

    The last is for rows whose writer died before it could look: `cut` asks the table, not a memory.
    """

    def __init__(self, catalogue: Catalogue, cut: CutVersions, *, sweep_seconds: float) -> None:
        self._catalogue = catalogue
        self._cut = cut
        self._sweep_seconds = sweep_seconds
        self._touched: set[str] = set()
        # In the event loop's time, which nobody sets.
        self._due: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._failing = False

    def touched(self, datasets: Collection[str]) -> None:
        """Rows came into these datasets: look at them now."""
        self._touched.update(datasets)
        self._wake.set()

    async def run(self) -> None:
        """Cut versions until cancelled."""
        time = asyncio.get_running_loop().time
        next_sweep = time()
        while True:
            now = time()
            if now >= next_sweep:
                await self._look_at_all()
                next_sweep = now + self._sweep_seconds
            else:
                await self._look_at_some(now)
            await self._sleep_until(min([next_sweep, *self._due.values()]))

    async def _sleep_until(self, moment: float) -> None:
        try:
            async with asyncio.timeout_at(moment):
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

    async def _look_at_some(self, now: float) -> None:
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
            version, due_in = await self._cut.cut_if_due(dataset)
        except Exception as error:
            # Whatever keeps a version from being cut now, its rows are still there to be cut later.
            self._log_failure(f"no version of {name} could be cut", error)
            self._look_again(name, _RETRY)
            return
        self._failing = False
        if due_in is not None:
            self._look_again(name, due_in)
        if version is not None:
            logger.info("cut version %d of %s with %d rows", version.version, name, version.row_count)

    def _look_again(self, name: str, wait: timedelta) -> None:
        self._due[name] = asyncio.get_running_loop().time() + wait.total_seconds()

    def _log_failure(self, what: str, error: Exception) -> None:
        # Where it happened once: an outage fails in the same way again and again.
        logger.warning("%s, trying again: %r", what, error, exc_info=not self._failing)
        self._failing = True
