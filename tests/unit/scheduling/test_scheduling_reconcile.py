from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast

from prometheus_client import REGISTRY
from tests.support.waiting import eventually

from headrace.scheduling.domain.job import JobState
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.policy import JobView, Limits
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.use_cases.ports import ChangeFeed, Store
from headrace.scheduling.use_cases.reconcile import Reconciler
from headrace.telemetry import names

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LARGE, SMALL = Resources(0, 8000, 1), Resources(0, 1000, 1)


class FakeWorld:
    """A job that runs, one that fits nowhere, and their node; nothing ever changes."""

    async def begin_epoch(self) -> int:
        return 1

    async def living_jobs(self) -> list[JobView]:
        return [
            JobView("waiting", 1, JobState.QUEUED, 0, LARGE, 1, "", NOW),
            JobView("running", 3, JobState.RUNNING, 0, SMALL, 1, "node-a", NOW),
        ]

    async def nodes(self) -> list[Node]:
        return [Node("node-a", SMALL, NOW + timedelta(hours=1), NOW)]

    @contextmanager
    def any_change(self) -> Iterator[FakeWorld]:
        yield self

    async def wait(self, seconds: float) -> None:
        await asyncio.Event().wait()


def gauges() -> list[float | None]:
    return [
        REGISTRY.get_sample_value(names.METRIC_SCHEDULING_PENDING),
        REGISTRY.get_sample_value(names.METRIC_SCHEDULING_ACTIVE),
        REGISTRY.get_sample_value(names.METRIC_SCHEDULING_NODES, {"ready": "true"}),
    ]


async def test_who_no_longer_leads_tells_no_jobs_and_nodes() -> None:
    world = FakeWorld()
    limits = Limits(timedelta(seconds=10))
    reconciler = Reconciler(cast("Store", world), cast("ChangeFeed", world), lambda: NOW, limits)
    leading = asyncio.create_task(reconciler.lead())
    await eventually(lambda: asyncio.sleep(0, gauges()), lambda told: told == [1, 1, 1])
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert gauges() == [0, 0, None]
