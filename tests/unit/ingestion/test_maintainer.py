from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.maintainer import Maintainer
from headrace.ingestion.use_cases.maintain_table import MaintainTable
from headrace.ingestion.use_cases.ports import Catalogue, Merge

START = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))
DATASETS = [Dataset(f"d{n:03}", SCHEMA, Cut(), 1, START, START) for n in range(150)]


@dataclass
class FakeWorld:
    """Catalogue and tables in memory, and the clock."""

    datasets: list[Dataset] = field(default_factory=lambda: DATASETS[:2])
    small_files: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    removed: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    clock: datetime = START
    database_clock: datetime | None = None
    """None: it goes with the other one."""
    away: bool = False

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        if self.away:
            raise ConnectionError
        return [dataset for dataset in self.datasets if dataset.name > after][:limit]

    async def now(self) -> datetime:
        return self.database_clock or self.clock

    async def table_versions(self, dataset: str, expired_before: datetime) -> Sequence[int]:
        assert expired_before == self.clock - timedelta(hours=1)
        return [3, 8]

    def merge(self, dataset: Dataset) -> Merge:
        if dataset.name in self.broken:
            raise OSError("the disk is full")
        self.seen.append(dataset.name)
        files = self.small_files.get(dataset.name, 0)
        merged = min(files, 10)
        self.small_files[dataset.name] = files - merged
        return Merge(files, merged, 100 * merged)

    def remove_unneeded(self, dataset: Dataset, cut: Sequence[int]) -> int:
        self.removed.append((dataset.name, cut))
        return 1


def maintainer_of(world: FakeWorld) -> Maintainer:
    catalogue = cast("Catalogue", world)
    return Maintainer(
        catalogue,
        MaintainTable(catalogue, world, clock=lambda: world.clock, reader_hours=1),
        clock=lambda: world.clock,
        interval_seconds=1,
        vacuum_hours=24,
        tables=asyncio.Lock(),
    )


async def test_small_files_are_merged_until_there_are_few() -> None:
    world = FakeWorld(small_files={"d000": 25})
    await maintainer_of(world).look_at_all()
    assert world.small_files["d000"] == 0
    assert world.seen == ["d000"] * 4 + ["d001"]


async def test_files_are_removed_at_once_and_then_once_a_day() -> None:
    world = FakeWorld()
    maintainer = maintainer_of(world)
    await maintainer.look_at_all()
    await maintainer.look_at_all()
    assert world.removed == [("d000", [3, 8]), ("d001", [3, 8])]
    world.clock += timedelta(hours=25)
    await maintainer.look_at_all()
    assert len(world.removed) == 4


async def test_a_table_that_fails_keeps_no_other_one_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = FakeWorld(broken={"d000"})
    maintainer = maintainer_of(world)
    with caplog.at_level(logging.WARNING):
        await maintainer.look_at_all()
        await maintainer.look_at_all()
    assert world.removed == [("d001", [3, 8])]
    # The whole story once, then a line each time.
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    world.broken.clear()
    await maintainer.look_at_all()
    assert world.removed[-1] == ("d000", [3, 8])


async def test_every_dataset_is_looked_at_however_many_there_are() -> None:
    world = FakeWorld(datasets=DATASETS)
    await maintainer_of(world).look_at_all()
    assert world.seen == [dataset.name for dataset in DATASETS]


async def test_a_catalogue_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    world = FakeWorld(away=True)
    maintainer = maintainer_of(world)
    await maintainer.look_at_all()
    assert "could not be maintained" in caplog.text
    world.away = False
    await maintainer.look_at_all()
    assert world.seen == ["d000", "d001"]


async def test_no_file_is_removed_by_a_clock_that_has_jumped(caplog: pytest.LogCaptureFixture) -> None:
    world = FakeWorld(small_files={"d000": 3}, clock=START + timedelta(days=400), database_clock=START)
    maintainer = maintainer_of(world)
    with caplog.at_level(logging.WARNING):
        await maintainer.look_at_all()
    assert world.removed == []
    assert "this service's clock says 2027-02-06 00:00:00 UTC" in caplog.text
    # Merging is by no clock.
    assert world.small_files["d000"] == 0
    world.clock = START
    await maintainer.look_at_all()
    assert [name for name, _ in world.removed] == ["d000", "d001"]
