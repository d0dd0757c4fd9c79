from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.rejection import State
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.expirer import Expirer
from headrace.ingestion.use_cases.expire import Expire
from headrace.ingestion.use_cases.ports import Catalogue, ExpiredRows, RejectedPage

NOW = datetime(2026, 3, 2, 13, tzinfo=UTC)
DAY = timedelta(days=1)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))


def dataset_of(name: str, **ages: timedelta) -> Dataset:
    return Dataset(name, SCHEMA, Cut(), 1, NOW, NOW, retention=Retention(**ages))


@dataclass
class World:
    """Catalogue and tables in memory: ages of entries and versions in days, oldest first, by dataset."""

    datasets: list[Dataset]
    entries: dict[str, list[int]] = field(default_factory=dict)
    old_versions: int = 0
    row_commits: dict[str, list[int]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    asked: list[tuple[str, datetime]] = field(default_factory=list)
    away: bool = False
    clock: datetime = NOW
    """The database's."""

    async def now(self) -> datetime:
        return self.clock

    async def retaining_datasets(self) -> Sequence[Dataset]:
        if self.away:
            raise ConnectionError("no database")
        return self.datasets

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[World]:
        yield self

    async def rejected_page(self, dataset: str, after: int, limit: int) -> RejectedPage | None:
        if dataset in self.broken:
            raise ConnectionError("no database")
        page = self.entries.get(dataset, [])[after : after + limit]
        return RejectedPage(after + len(page), NOW - page[-1] * DAY) if page else None

    async def expire_rejected(
        self, dataset: str, after: int, last: int, before: datetime
    ) -> Mapping[State, int]:
        self.asked.append((f"entries {after} to {last}", before))
        return {State.PENDING: sum(NOW - age * DAY < before for age in self.entries[dataset][after:last])}

    async def expire_versions(
        self, dataset: str, cut_before: datetime, time: datetime, limit: int
    ) -> Sequence[int]:
        assert time == NOW
        self.asked.append((f"versions of {dataset}", cut_before))
        forgotten = min(limit, self.old_versions)
        self.old_versions -= forgotten
        return range(1, forgotten + 1)

    def expire_rows(self, dataset: Dataset, before: datetime) -> ExpiredRows:
        self.asked.append((f"rows of {dataset.name}", before))
        first, *rest = self.row_commits[dataset.name]
        self.row_commits[dataset.name] = rest
        return ExpiredRows(first, more=bool(rest))


def expire_in(world: World) -> Expire:
    return Expire(cast("Catalogue", world), world, clock=lambda: NOW)


def expirer_of(world: World) -> Expirer:
    return Expirer(cast("Catalogue", world), expire_in(world), interval_seconds=1, tables=asyncio.Lock())


async def test_rejected_events_are_gone_through_from_the_oldest_as_far_as_they_can_be_old() -> None:
    dataset = dataset_of("d", rejected=30 * DAY)
    world = World([dataset], entries={"d": [40] * 1500 + [20] * 5000})
    assert await expire_in(world).rejected(dataset) == 1500
    before = NOW - 30 * DAY
    assert world.asked == [("entries 0 to 1000", before), ("entries 1000 to 2000", before)]


async def test_versions_are_forgotten_until_none_is_old() -> None:
    dataset = dataset_of("d", versions=365 * DAY)
    world = World([dataset], old_versions=1200)
    assert await expire_in(world).versions(dataset) == 1200
    assert world.asked == [("versions of d", NOW - 365 * DAY)] * 3


async def test_rows_go_until_none_is_old() -> None:
    dataset = dataset_of("d", rows=90 * DAY)
    world = World([dataset], row_commits={"d": [7, 5, 0]})
    assert await expire_in(world).rows(dataset) == 12
    assert world.asked == [("rows of d", datetime(2025, 12, 2, tzinfo=UTC))] * 3


async def test_only_what_is_declared_is_looked_for() -> None:
    world = World([dataset_of("d", versions=DAY)])
    await expirer_of(world).look_at_all()
    assert [what for what, _ in world.asked] == ["versions of d"]


async def test_what_fails_keeps_nothing_else_from_being_removed(caplog: pytest.LogCaptureFixture) -> None:
    broken = dataset_of("broken", rejected=DAY, rows=DAY)
    world = World([broken, dataset_of("sound", rows=DAY)], row_commits={"broken": [1, 0], "sound": [0, 0]})
    world.broken.add("broken")
    expirer = expirer_of(world)
    with caplog.at_level(logging.WARNING):
        await expirer.look_at_all()
    assert [what for what, _ in world.asked] == [*["rows of broken"] * 2, *["rows of sound"] * 2]
    assert "old rejected events of broken could not be removed" in caplog.text


async def test_an_outage_is_waited_out() -> None:
    world = World([dataset_of("d", versions=DAY)], away=True)
    expirer = expirer_of(world)
    await expirer.look_at_all()
    assert world.asked == []
    world.away = False
    await expirer.look_at_all()
    assert world.asked


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400), timedelta(hours=-1, seconds=-1)])
async def test_nothing_goes_while_the_clocks_disagree(
    jump: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataset_of("d", rows=DAY, versions=DAY, rejected=DAY)
    world = World([dataset], entries={"d": [40]}, old_versions=1, row_commits={"d": [7]}, clock=NOW + jump)
    expirer, failures = expirer_of(world), metrics.EXPIRY_FAILURES.collect()[0].samples[0].value
    with caplog.at_level(logging.WARNING):
        await expirer.look_at_all()
    assert world.asked == []
    assert "this service's clock says 2026-03-02 13:00:00 UTC, and PostgreSQL's" in caplog.text
    assert metrics.EXPIRY_FAILURES.collect()[0].samples[0].value == failures + 3
    world.clock = NOW + timedelta(hours=1)
    await expirer.look_at_all()
    assert {what.split()[0] for what, _ in world.asked} == {"entries", "versions", "rows"}
