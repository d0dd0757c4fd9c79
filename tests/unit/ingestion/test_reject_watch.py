from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest
from prometheus_client import REGISTRY

from headrace.ingestion import metrics
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.reject_watch import RejectWatch
from headrace.ingestion.use_cases.ports import PendingCount
from headrace.ingestion.use_cases.watch_rejects import WatchRejects
from headrace.telemetry import names

START = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8))


@dataclass
class FakeWatch:
    """Datasets to look at, one of which cannot be."""

    looks: list[list[str]]
    seen: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def pending(self) -> Sequence[PendingCount]:
        if not self.looks:
            self.done.set()
            await asyncio.Event().wait()
        return [
            PendingCount(Dataset(name, SCHEMA, Cut(), 1, START, START), 1, None) for name in self.looks.pop(0)
        ]

    async def look_at(self, counted: PendingCount) -> None:
        name = counted.dataset.name
        self.seen.append(name)
        if name == "broken":
            raise OSError("the store is away")
        metrics.REJECT_SHARE.labels(name).set(0.5)


async def watched(watch: FakeWatch) -> None:
    running = asyncio.create_task(RejectWatch(cast("WatchRejects", watch), seconds=0.001).run())
    async with asyncio.timeout(10):
        await watch.done.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_dataset_that_cannot_be_looked_at_keeps_nobody_else_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = FakeWatch([["broken", "whole"], ["broken", "whole"]])
    with caplog.at_level(logging.WARNING):
        await watched(watch)
    assert watch.seen == ["broken", "whole"] * 2
    first, second = caplog.records
    assert "the store is away" in caplog.text
    # Where it happened stands there once.
    assert first.exc_info
    assert not second.exc_info


async def test_a_dataset_without_rejected_events_has_no_share() -> None:
    def share() -> float | None:
        return REGISTRY.get_sample_value(names.METRIC_INGESTION_REJECT_SHARE, {"dataset": "watched"})

    await watched(FakeWatch([["watched"]]))
    assert share() == 0.5
    await watched(FakeWatch([["watched"], []]))
    assert share() is None
