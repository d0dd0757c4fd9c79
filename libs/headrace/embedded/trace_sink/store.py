"""Spans in PostgreSQL, written in batches behind a bounded queue."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable

import asyncpg

from headrace.embedded.trace_sink.decode import SpanRow

logger = logging.getLogger(__name__)

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS telemetry;
CREATE TABLE IF NOT EXISTS telemetry.spans (
    trace_id       text        NOT NULL,
    span_id        text        NOT NULL,
    parent_span_id text        NOT NULL,
    service        text        NOT NULL,
    name           text        NOT NULL,
    kind           text        NOT NULL,
    start_time     timestamptz NOT NULL,
    end_time       timestamptz NOT NULL,
    status         text        NOT NULL,
    attributes     jsonb       NOT NULL,
    links          jsonb       NOT NULL,
    PRIMARY KEY (trace_id, span_id)
);
CREATE INDEX IF NOT EXISTS spans_by_time ON telemetry.spans (start_time);
-- `headrace trace --job`, `--prediction` and `--event` look spans up by an attribute's value.
CREATE INDEX IF NOT EXISTS spans_by_attribute ON telemetry.spans USING gin (attributes jsonb_path_ops);
"""

# Exporters retry, and Triton may send a span twice: the first one stands.
INSERT = """
INSERT INTO telemetry.spans VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11::jsonb)
ON CONFLICT (trace_id, span_id) DO NOTHING
"""

DELETE_OLD = "DELETE FROM telemetry.spans WHERE start_time < now() - $1 * interval '1 hour'"


RETRY_SECONDS = 0.5
SWEEP_SECONDS = 3600.0
# PostgreSQL is away, or about to be: the same spans can be written later.
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
)


class SpanStore:
    """Queues spans and writes them.

    While PostgreSQL is away they wait. A full queue drops spans and counts them: tracing must never hold a
    service back.
    """

    def __init__(self, pool: asyncpg.Pool, *, capacity: int = 100_000, retention_hours: float = 72) -> None:
        self._pool = pool
        self._queue: asyncio.Queue[SpanRow] = asyncio.Queue(capacity)
        self._retention_hours = retention_hours
        # Taken from the queue and not known to be written.
        self._batch: list[SpanRow] = []
        self.dropped = 0
        # Whether PostgreSQL did not take the last batch.
        self.waiting = False

    async def prepare(self) -> None:
        """Create what is missing and remove what is too old."""
        async with self._pool.acquire() as connection:
            await connection.execute(SCHEMA)
        await self._sweep()

    def put(self, spans: Iterable[SpanRow]) -> None:
        """Queue spans for writing; never waits."""
        for span in spans:
            try:
                self._queue.put_nowait(span)
            except asyncio.QueueFull:
                if self.dropped == 0:
                    logger.warning("the span queue is full: dropping spans")
                self.dropped += 1

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            self._batch = self._drain([await self._queue.get()])
            while not await self._written(self._batch):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(RETRY_SECONDS)
            self._batch = []

    async def flush(self) -> None:
        """Write what is queued, once `run` has ended; with what it was at, which may be there already."""
        while batch := self._drain(self._batch):
            self._batch = []
            if not await self._written(batch):
                self.dropped += len(batch)
                return

    async def sweep(self) -> None:
        """Remove what is too old, every hour until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep()
            except (*_AWAY, asyncpg.PostgresError) as error:
                logger.warning("old spans were not removed: %r", error)

    async def _sweep(self) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(DELETE_OLD, self._retention_hours)

    def _drain(self, batch: list[SpanRow], limit: int = 2_000) -> list[SpanRow]:
        while len(batch) < limit and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def _written(self, batch: list[SpanRow]) -> bool:
        """Write a batch; False where PostgreSQL is away."""
        try:
            async with self._pool.acquire() as connection:
                await connection.executemany(INSERT, [_arguments(span) for span in batch])
        except _AWAY as error:
            if not self.waiting:
                logger.warning("spans wait for PostgreSQL: %r", error)
            self.waiting = True
            return False
        except (asyncpg.PostgresError, asyncpg.DataError):
            if len(batch) > 1:
                # One that PostgreSQL does not take must not cost the others.
                for span in batch:
                    await self._written([span])
            else:
                logger.exception("a span was not written: %s", batch[0].name)
                self.dropped += 1
        self.waiting = False
        return True


def _arguments(span: SpanRow) -> tuple[object, ...]:
    return (
        span.trace_id,
        span.span_id,
        span.parent_span_id,
        span.service,
        span.name,
        span.kind,
        span.start_time,
        span.end_time,
        span.status,
        json.dumps(span.attributes),
        json.dumps(span.links),
    )
