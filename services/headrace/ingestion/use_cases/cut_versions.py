"""Versions of datasets, from what their tables hold.

Level-triggered: what is uncut is the difference between a table and its dataset's last version, never a
count kept in memory. After a crash between a commit and its cut, the cut still comes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from typing import Final

from headrace.errors import Aborted, FailedPrecondition, NotFound
from headrace.ingestion import metrics
from headrace.ingestion.domain.cut import due_time, is_due
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion, Uncut, next_version
from headrace.ingestion.domain.quality import verdict_of
from headrace.ingestion.domain.rejects import fewest_too_many
from headrace.ingestion.use_cases.ports import Catalogue, SampleTables
from headrace.ingestion.use_cases.profile_versions import ProfileVersions
from headrace.rpc.deadline import unbounded
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.telemetry import names, tracing

_ATTEMPTS: Final = 10
# Before the table's first commit.
_NOTHING: Final = -1


class CutVersions:
    """Cuts versions when they are due, or when they are asked for."""

    def __init__(
        self, catalogue: Catalogue, tables: SampleTables, profile: ProfileVersions, *, clock: Clock
    ) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._profile = profile
        self._clock = clock
        # How far each table was read already, beyond which version: commits are immutable.
        self._read: dict[str, tuple[int, Uncut]] = {}
        # Two: a cut reads new rows, which nobody who only asks for the state waits for.
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._cutting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # The loop itself does not keep its tasks.
        self._commits: set[asyncio.Task[DatasetVersion]] = set()

    async def cut_if_due(self, dataset: Dataset) -> tuple[DatasetVersion | None, timedelta | None]:
        """Cut a version if its time has come. Also answers in how long, if ever, the next one is due by age.

        One that rejected events hold back is looked at again by whoever comes next.
        """
        async with self._cutting[dataset.name]:
            last, uncut = await self.uncut(dataset)
            now = self._clock()
            if not is_due(dataset.cut, uncut, now):
                due = due_time(dataset.cut, uncut, now)
                return None, None if due is None else due - now
            if await self._lacks_too_much(dataset, last, uncut):
                return None, None
            # None where another instance cut at the same moment: whoever comes next looks again.
            return await self._cut(dataset, last, uncut), None

    async def commit(self, name: str) -> DatasetVersion:
        """Cut a version from everything that is stored; answer the last one where nothing is new.

        Rejected events do not hold it back: whoever asks has decided. Whoever is cancelled while many rows
        are read, and asks again, meets the version that was made meanwhile.
        Raises NotFound DATASET_NOT_FOUND, FailedPrecondition DATASET_EMPTY.
        """
        with unbounded():
            commit = asyncio.create_task(self._commit(name))
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        return await asyncio.shield(commit)

    async def _commit(self, name: str) -> DatasetVersion:
        dataset = await require_dataset(self._catalogue, name)
        for _ in range(_ATTEMPTS):
            async with self._cutting[name]:
                last, uncut = await self.uncut(dataset)
                if not uncut.rows and not uncut.erased:
                    return _require_rows(name, last)
                version = await self._cut(dataset, last, uncut)
            if version is not None:
                return version
        raise Aborted("VERSION_CONFLICT", f"versions of {name} are being cut by others; try again")

    async def is_held(self, dataset: Dataset) -> bool:
        """Whether rejected events hold back a cut that is due."""
        if not dataset.rejects.hold_cut:
            return False
        last, uncut = await self.uncut(dataset)
        return is_due(dataset.cut, uncut, self._clock()) and await self._lacks_too_much(dataset, last, uncut)

    async def uncut(self, dataset: Dataset) -> tuple[DatasetVersion | None, Uncut]:
        """The last version, and what the table holds beyond it."""
        async with self._reading[dataset.name]:
            return await self._state(dataset)

    async def _lacks_too_much(self, dataset: Dataset, last: DatasetVersion | None, uncut: Uncut) -> bool:
        """Whether the owner wants no version of the uncut rows, for the events that they would be without."""
        if not dataset.rejects.hold_cut:
            return False
        too_many = fewest_too_many(dataset.rejects.alert_share, uncut.rows)
        if too_many is None:
            return False
        since = last.create_time if last else dataset.create_time
        return await self._catalogue.pending_count(dataset.name, since, too_many) >= too_many

    async def _state(self, dataset: Dataset) -> tuple[DatasetVersion | None, Uncut]:
        last = await self._catalogue.last_version(dataset.name)
        number, table_version = (last.version, last.table_version) if last else (0, _NOTHING)
        known_number, uncut = self._read.get(dataset.name, (-1, Uncut(table_version)))
        if known_number != number:
            uncut = Uncut(table_version)
        state = await asyncio.to_thread(self._tables.state_since, dataset, uncut.table_version)
        uncut = uncut.advance(state.commits, max(state.table_version, uncut.table_version))
        self._read[dataset.name] = (number, uncut)
        return last, uncut

    async def _cut(
        self, dataset: Dataset, last: DatasetVersion | None, uncut: Uncut
    ) -> DatasetVersion | None:
        version = next_version(dataset, last, uncut, self._clock())
        # The version continues the trace of its first sample, and the job that trains on it that of the
        # version; whoever asked for the cut is linked.
        with tracing.span(
            names.SPAN_CUT_VERSION,
            parent=version.traceparent or None,
            links=[tracing.current_traceparent()],
            attributes={
                names.DATASET: dataset.name,
                names.DATASET_VERSION: version.version,
                names.ROWS: version.row_count,
            },
        ):
            # Before anything is stored: no version is there without its profile and its verdict.
            profiled = await self._profile(dataset, last, uncut.table_version, extends_last=not uncut.erased)
            verdict = verdict_of(profiled.findings)
            version = replace(
                version, verdict=verdict, findings=profiled.findings, split_counts=profiled.split_counts
            )
            async with self._catalogue.transaction() as repository:
                if not await repository.insert_version(version):
                    return None
                await repository.insert_profile(dataset.name, version.version, profiled.profile)
                await repository.publish_version(dataset, version, self._tables.uri(dataset.name))
        fault_point("ingestion.after-cut-commit")
        metrics.VERSIONS.labels(dataset.name).inc()
        return version


async def require_dataset(catalogue: Catalogue, name: str) -> Dataset:
    """The dataset. Raises NotFound DATASET_NOT_FOUND."""
    dataset = (await catalogue.datasets([name])).get(name)
    if dataset is None:
        raise NotFound("DATASET_NOT_FOUND", f'there is no dataset "{name}"; apply its pipeline first')
    return dataset


def _require_rows(name: str, last: DatasetVersion | None) -> DatasetVersion:
    if last is None:
        raise FailedPrecondition("DATASET_EMPTY", f"{name} has no rows yet; send samples first")
    return last
