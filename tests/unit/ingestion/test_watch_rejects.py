"""When alerts about rejected events begin and end, and which cuts wait for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa
import pytest
from prometheus_client import REGISTRY

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion, TableCommit
from headrace.ingestion.domain.profile import Profile
from headrace.ingestion.domain.rejects import Episode, Rejects, RejectShare
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.ports import (
    Catalogue,
    PendingCount,
    SampleTables,
    TableState,
    VersionRows,
)
from headrace.ingestion.use_cases.profile_versions import ProfileVersions
from headrace.ingestion.use_cases.watch_rejects import SETTLED, WatchRejects
from headrace.telemetry import names

START = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
WINDOW = timedelta(minutes=10)


@dataclass
class FakeWorld:
    """What PostgreSQL and a table hold of one dataset, and the clock."""

    dataset: Dataset
    now: datetime = START
    listed: bool = True
    rejected: list[datetime] = field(default_factory=list)
    commits: list[TableCommit] = field(default_factory=list)
    versions: list[DatasetVersion] = field(default_factory=list)
    episode: Episode | None = None
    told: list[str] = field(default_factory=list)
    shares: list[RejectShare] = field(default_factory=list)
    read_since: list[int] = field(default_factory=list)

    def clock(self) -> datetime:
        return self.now

    def store(self, rows: int) -> None:
        self.commits.append(TableCommit(len(self.commits), rows, rows, (), "", self.now))

    def reject(self, events: int) -> None:
        self.rejected += [self.now] * events

    def later(self, length: timedelta) -> None:
        self.now += length

    # --- Catalogue and Repository

    async def pending_counts(self, until: datetime) -> Sequence[PendingCount]:
        since = until - self.dataset.rejects.window
        count = sum(since < time <= until for time in self.rejected)
        return [PendingCount(self.dataset, count, self.episode)] if self.listed else []

    async def pending_count(self, dataset: str, since: datetime, at_most: int) -> int:
        return min(at_most, sum(time > since for time in self.rejected))

    async def last_version(self, dataset: str) -> DatasetVersion | None:
        return self.versions[-1] if self.versions else None

    async def datasets(self, names: Sequence[str]) -> dict[str, Dataset]:
        return {self.dataset.name: self.dataset}

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[FakeWorld]:
        yield self

    async def begin_episode(self, episode: Episode) -> bool:
        if self.episode is not None:
            return False
        self.episode = episode
        return True

    async def end_episode(self, episode: Episode, time: datetime) -> bool:
        if self.episode is None:
            return False
        self.episode = None
        return True

    async def publish_exceeded(
        self, episode: Episode, dataset: Dataset, share: RejectShare, *, cut_held: bool
    ) -> None:
        self.told.append("exceeded and held" if cut_held else "exceeded")
        self.shares.append(share)

    async def publish_recovered(
        self, episode: Episode, dataset: Dataset, share: RejectShare, time: datetime
    ) -> None:
        self.told.append("recovered")
        self.shares.append(share)

    async def insert_version(self, version: DatasetVersion) -> bool:
        self.versions.append(version)
        return True

    async def profile(self, dataset: str, version: int) -> Profile | None:
        return None

    async def insert_profile(self, dataset: str, version: int, profile: Profile) -> None: ...

    async def publish_version(self, dataset: Dataset, version: DatasetVersion, table_uri: str) -> None: ...

    # --- SampleTables

    def uri(self, dataset: str) -> str:
        return f"memory:///{dataset}"

    def state_since(self, dataset: Dataset, table_version: int) -> TableState:
        self.read_since.append(table_version)
        later = [commit for commit in self.commits if commit.table_version > table_version]
        return TableState(len(self.commits) - 1, later)

    def state_after(self, dataset: Dataset, moment: datetime) -> TableState:
        later = [commit for commit in self.commits if commit.commit_time > moment]
        return TableState(len(self.commits) - 1, later)

    # --- VersionRows, which no share depends on

    def added(self, dataset: Dataset, after: int, table_version: int) -> Iterator[pa.RecordBatch]:
        return iter(())

    def at(self, dataset: str, table_version: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter(())

    # --- use cases

    def versions_of(self) -> CutVersions:
        profile = ProfileVersions(cast("Catalogue", self), cast("VersionRows", self))
        return CutVersions(cast("Catalogue", self), cast("SampleTables", self), profile, clock=self.clock)

    def watch(self) -> WatchRejects:
        catalogue, tables = cast("Catalogue", self), cast("SampleTables", self)
        return WatchRejects(catalogue, tables, self.versions_of(), clock=self.clock)


def world(*, cut_rows: int = 0, hold_cut: bool = False, alert_share: float = 0.05) -> FakeWorld:
    made = FakeWorld(
        Dataset("d", SCHEMA, Cut(cut_rows), 1, START, START, Rejects(alert_share, WINDOW, hold_cut))
    )
    made.store(0)
    made.later(timedelta(seconds=1))
    return made


async def look(watch: WatchRejects) -> None:
    for counted in await watch.pending():
        await watch.look_at(counted)


async def test_an_episode_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    state = world()
    watch = state.watch()
    state.store(90)
    state.reject(10)
    state.later(SETTLED)
    await look(watch)
    await look(watch)
    assert state.told == ["exceeded"]
    assert state.shares == [RejectShare(10, 90)]
    # Another process, which has seen nothing.
    await look(state.watch())
    assert state.told == ["exceeded"]
    state.store(110)
    await look(watch)
    assert state.told == ["exceeded", "recovered"]
    assert state.shares[-1] == RejectShare(10, 200)


async def test_what_was_resolved_does_not_count_any_more() -> None:
    state = world()
    watch = state.watch()
    state.reject(1)
    state.later(SETTLED)
    await look(watch)
    state.rejected.clear()
    await look(watch)
    assert state.told == ["exceeded", "recovered"]


async def test_what_is_older_than_the_window_does_not_count() -> None:
    state = world()
    watch = state.watch()
    state.store(1000)
    state.later(WINDOW)
    state.reject(10)
    state.store(90)
    state.later(SETTLED + timedelta(seconds=1))
    await look(watch)
    assert state.shares == [RejectShare(10, 90)]
    state.later(WINDOW)
    await look(watch)
    assert state.told == ["exceeded", "recovered"]
    # What was read of the table is not read again.
    assert state.read_since == [2]


@pytest.mark.parametrize("listed", [False, True], ids=["nothing to look at", "no look succeeded"])
async def test_commits_from_before_the_window_are_not_read_after_a_break(listed: bool) -> None:
    state = world()
    watch = state.watch()
    state.store(1000)
    state.reject(1)
    state.later(SETTLED)
    await look(watch)
    state.rejected.clear()
    state.listed = listed
    if not listed:
        await look(watch)
        state.listed = True
    for _ in range(3):
        state.store(1000)
        state.later(WINDOW)
    state.reject(10)
    state.store(90)
    state.later(SETTLED + timedelta(seconds=1))
    await look(watch)
    assert state.shares == [RejectShare(10, 90)]
    assert state.read_since == []


async def test_what_was_read_of_a_dataset_is_forgotten_with_its_rejections() -> None:
    state = world()
    watch = state.watch()
    state.reject(1)
    state.later(SETTLED)
    await look(watch)
    state.listed = False
    await look(watch)
    state.listed = True
    await look(watch)
    assert state.read_since == []


async def test_a_window_that_became_longer_reads_what_is_in_it() -> None:
    state = world()
    watch = state.watch()
    state.store(1000)
    state.later(WINDOW + SETTLED)
    state.reject(10)
    state.later(SETTLED)
    await look(watch)
    state.dataset = replace(state.dataset, rejects=Rejects(window=2 * WINDOW))
    await look(watch)
    assert state.shares == [RejectShare(10, 0), RejectShare(10, 1000)]


async def test_a_batch_whose_rows_are_still_to_come_raises_nothing() -> None:
    state = world()
    watch = state.watch()
    state.reject(5)
    await look(watch)
    state.store(1000)
    state.later(SETTLED)
    await look(watch)
    assert state.told == []


async def test_a_share_of_one_never_alerts_and_a_share_of_zero_always() -> None:
    for alert_share, told in ((1.0, []), (0.0, ["exceeded"])):
        state = world(alert_share=alert_share)
        state.store(0)
        state.reject(1)
        state.later(SETTLED)
        await look(state.watch())
        assert state.told == told


async def test_a_cut_waits_until_the_rejected_events_are_resolved() -> None:
    state = world(cut_rows=10, hold_cut=True)
    versions = state.versions_of()
    state.store(19)
    state.reject(1)
    # One of twenty: not more than 5 %.
    version, _ = await versions.cut_if_due(state.dataset)
    assert version is not None
    state.later(timedelta(seconds=1))
    state.store(19)
    state.reject(2)
    assert await versions.cut_if_due(state.dataset) == (None, None)
    assert await versions.is_held(state.dataset)
    await look(state.watch())
    assert state.told == ["exceeded and held"]
    # Long after the window: what the version would lack has not become less.
    state.later(2 * WINDOW)
    assert await versions.cut_if_due(state.dataset) == (None, None)
    await look(state.watch())
    assert state.told == ["exceeded and held"]
    state.rejected.clear()
    assert not await versions.is_held(state.dataset)
    await look(state.watch())
    assert state.told == ["exceeded and held", "recovered"]
    version, _ = await versions.cut_if_due(state.dataset)
    assert version is not None


async def test_a_version_on_request_is_cut_whatever_was_rejected() -> None:
    state = world(cut_rows=10, hold_cut=True)
    versions = state.versions_of()
    state.store(10)
    state.reject(10)
    assert await versions.cut_if_due(state.dataset) == (None, None)
    assert (await versions.commit("d")).row_count == 10
    # The events that it lacks are its own: the next one begins anew.
    state.later(timedelta(seconds=1))
    state.store(10)
    version, _ = await versions.cut_if_due(state.dataset)
    assert version is not None


@pytest.mark.parametrize(("hold_cut", "alert_share"), [(False, 0.0), (True, 1.0)])
async def test_no_cut_waits_unless_the_owner_wants_it(hold_cut: bool, alert_share: float) -> None:
    state = world(cut_rows=10, hold_cut=hold_cut, alert_share=alert_share)
    state.store(10)
    state.reject(10)
    version, _ = await state.versions_of().cut_if_due(state.dataset)
    assert version is not None
    assert not await state.versions_of().is_held(state.dataset)


async def test_the_share_is_a_metric() -> None:
    state = world()
    state.store(15)
    state.reject(5)
    state.later(SETTLED)
    await look(state.watch())
    assert REGISTRY.get_sample_value(names.METRIC_INGESTION_REJECT_SHARE, {"dataset": "d"}) == 0.25
    assert REGISTRY.get_sample_value(names.METRIC_INGESTION_REJECT_ALERT, {"dataset": "d"}) == 1
    assert REGISTRY.get_sample_value(names.METRIC_INGESTION_CUT_HELD, {"dataset": "d"}) == 0
