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


class SpanStore:
    """Queues spans and writes them.

    A full queue drops spans and counts them: tracing must never hold a service back.
    """

    def __init__(self, pool: asyncpg.Pool, *, capacity: int = 100_000, retention_hours: float = 72) -> None:
        self._pool = pool
        self._queue: asyncio.Queue[SpanRow] = asyncio.Queue(capacity)
        self._retention_hours = retention_hours
        self.dropped = 0

    async def prepare(self) -> None:
        """Create what is missing and remove what is too old."""
        async with self._pool.acquire() as connection:
            await connection.execute(SCHEMA)
            await connection.execute(DELETE_OLD, self._retention_hours)

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
        """Write batches until cancelled; what is queued then is written first."""
        try:
            while True:
                batch = [await self._queue.get()]
                await self._write(self._drain(batch))
        except asyncio.CancelledError:
            await asyncio.shield(self._write(self._drain([])))
            raise

    def _drain(self, batch: list[SpanRow], limit: int = 2_000) -> list[SpanRow]:
        while len(batch) < limit and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def _write(self, batch: list[SpanRow]) -> None:
        try:
            async with self._pool.acquire() as connection:
                await connection.executemany(INSERT, [_arguments(span) for span in batch])
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            logger.exception("%d spans were not written", len(batch))
            self.dropped += len(batch)


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
