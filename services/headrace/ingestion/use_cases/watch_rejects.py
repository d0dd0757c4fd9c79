"""Alerts where too large a share of a dataset's events is rejected.

Level-triggered: what was rejected is counted in PostgreSQL, what was stored in the table's own commits, and
whether an alert is raised stands in PostgreSQL, too. Whoever looks, and whenever, comes to the same end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset, TableCommit
from headrace.ingestion.domain.rejects import Episode, RejectShare
from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.ports import Catalogue, PendingCount, SampleTables
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.ids import new_id

logger = logging.getLogger(__name__)

# A batch's rejected events are in PostgreSQL a moment before its rows are in the table: younger ones would
# be compared with rows that are still to come.
SETTLED: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class _Read:
    """The commits of a table after a moment, up to a table version."""

    after: datetime
    table_version: int
    commits: Sequence[TableCommit]


class WatchRejects:
    """Looks at datasets with rejected events, and begins and ends their episodes."""

    def __init__(
        self, catalogue: Catalogue, tables: SampleTables, versions: CutVersions, *, clock: Clock
    ) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._versions = versions
        self._clock = clock
        # Commits are immutable, and read once.
        self._read: dict[str, _Read] = {}

    async def pending(self) -> Sequence[PendingCount]:
        """What there is to look at; what was read of everything else is forgotten."""
        counts = await self._catalogue.pending_counts(self._clock() - SETTLED)
        names = {counted.dataset.name for counted in counts}
        self._read = {name: read for name, read in self._read.items() if name in names}
        return counts

    async def look_at(self, counted: PendingCount) -> None:
        """Begin an episode, or end it, if its time has come."""
        dataset, episode, now = counted.dataset, counted.episode, self._clock()
        stored = await self._stored_since(dataset, now - SETTLED - dataset.rejects.window)
        share = RejectShare(counted.rejected, stored)
        held = await self._versions.is_held(dataset)
        raised = held or share.exceeds(dataset.rejects.alert_share)
        if raised and episode is None:
            await self._begin(Episode(new_id(), dataset.name, now), dataset, share, cut_held=held)
        elif episode is not None and not raised:
            await self._end(episode, dataset, share, now)
        metrics.REJECT_SHARE.labels(dataset.name).set(share.share)
        metrics.REJECT_ALERT.labels(dataset.name).set(raised)
        metrics.CUT_HELD.labels(dataset.name).set(held)

    async def _begin(self, episode: Episode, dataset: Dataset, share: RejectShare, *, cut_held: bool) -> None:
        async with self._catalogue.transaction() as repository:
            if await repository.begin_episode(episode):
                await repository.publish_exceeded(episode, dataset, share, cut_held=cut_held)
        logger.warning("rejected and waiting: %.1f %% of %s's events", 100 * share.share, dataset.name)
        fault_point("ingestion.after-alert-commit")

    async def _end(self, episode: Episode, dataset: Dataset, share: RejectShare, now: datetime) -> None:
        async with self._catalogue.transaction() as repository:
            if await repository.end_episode(episode, now):
                await repository.publish_recovered(episode, dataset, share, now)
        logger.info("rejected and waiting: %.1f %% of %s's events", 100 * share.share, dataset.name)
        fault_point("ingestion.after-alert-commit")

    async def _stored_since(self, dataset: Dataset, moment: datetime) -> int:
        known = self._read.get(dataset.name)
        if known is None or not known.after <= moment <= known.after + dataset.rejects.window:
            # Nothing is known yet, the window has become longer, or the last look was before it.
            state = await asyncio.to_thread(self._tables.state_after, dataset, moment)
            commits = list(state.commits)
        else:
            state = await asyncio.to_thread(self._tables.state_since, dataset, known.table_version)
            commits = [*known.commits, *state.commits]
        recent = [commit for commit in commits if commit.rows and commit.commit_time > moment]
        self._read[dataset.name] = _Read(moment, state.table_version, recent)
        return sum(commit.rows for commit in recent)
