"""Runs as rows, and the events that tell of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import asyncpg

from headrace.errors import NotFound
from headrace.events.training.v1 import events_pb2
from headrace.messaging.events import protobuf_event
from headrace.messaging.topics import RUNS
from headrace.postgres import Pool, transaction
from headrace.postgres.outbox import enqueue
from headrace.postgres.queries import load_queries
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id
from headrace.training.domain.runs import Run, RunState
from headrace.training.messages import run_message

QUERIES: Final = load_queries("headrace.training.storage")


class RunRepository:
    """Stores runs; each change leaves as an event."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, run: Run) -> None:
        """Store a run as it is, and queue the event that tells of it."""
        event = protobuf_event(
            events_pb2.RunChanged(run=run_message(run)),
            type="headrace.training.run-changed.v1",
            source="headrace/training",
            subject=run.id,
            id=new_id(),
            time=utc_now(),
            traceparent=run.traceparent,
        )
        async with transaction(self._pool) as connection:
            await connection.execute(
                QUERIES["put_run"],
                run.id,
                run.job,
                run.attempt,
                run.pipeline,
                run.node,
                run.traceparent,
                run.state,
                run.reason,
                run.message,
                run.epoch,
                run.epochs,
                run.loss,
                run.remaining.total_seconds(),
                run.resumed_epoch,
                dict(run.metrics),
                run.model_version,
                run.start_time,
                run.end_time,
            )
            await enqueue(connection, RUNS, run.id, event)

    async def get(self, run_id: str) -> Run:
        """One run. Raises NotFound."""
        row = await self._pool.fetchrow(QUERIES["get_run"], run_id)
        if row is None:
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id!r}; `headrace get runs` lists them")
        return _run(row)

    async def list_runs(self, job: str, before: datetime, before_id: str, limit: int) -> list[Run]:
        """Runs, newest first; of one job where it is named."""
        rows = await self._pool.fetch(QUERIES["list_runs"], job, before, before_id, limit)
        return [_run(row) for row in rows]

    async def recent(self, node: str, limit: int = 200) -> list[Run]:
        """A node's runs, newest first."""
        return [_run(row) for row in await self._pool.fetch(QUERIES["recent_runs"], node, limit)]


def _run(row: asyncpg.Record) -> Run:
    return Run(
        id=row["id"],
        job=row["job"],
        attempt=row["attempt"],
        pipeline=row["pipeline"],
        node=row["node"],
        traceparent=row["traceparent"],
        start_time=row["start_time"],
        state=RunState(row["state"]),
        reason=row["reason"],
        message=row["message"],
        epoch=row["epoch"],
        epochs=row["epochs"],
        loss=row["loss"],
        remaining=timedelta(seconds=row["remaining_seconds"]),
        resumed_epoch=row["resumed_epoch"],
        metrics=row["metrics"],
        model_version=row["model_version"],
        end_time=row["end_time"],
    )
