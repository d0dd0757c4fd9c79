"""Finding a trace: by its id, or by a job, a prediction or an event that took part in it."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from headrace.cli.waterfall import Span
from headrace.errors import NotFound, Unavailable

# Statements to the database are many, and seldom what is looked for.
SPANS = """
SELECT span_id, parent_span_id, service, name, start_time, end_time, status
FROM telemetry.spans
WHERE trace_id = $1 AND ($2 OR NOT attributes ?| ARRAY['db.system', 'db.system.name'])
ORDER BY start_time
"""

# The oldest trace that names the value: a job's own trace, not that of somebody who asked for it later.
BY_ATTRIBUTE = """
SELECT trace_id FROM telemetry.spans WHERE attributes @> jsonb_build_object($1::text, $2::text)
ORDER BY start_time LIMIT 1
"""


@dataclass(frozen=True)
class TraceStore:
    """The embedded stack's spans, read from its PostgreSQL."""

    dsn: str

    async def spans(self, trace_id: str, *, statements: bool = False) -> list[Span]:
        """A trace's spans that have arrived, with `statements` those of the database too.

        Raises NotFound where there is none.
        """
        rows = await self._fetch(SPANS, trace_id, statements)
        if not rows:
            raise NotFound(
                "TRACE_NOT_FOUND",
                f"no trace {trace_id!r}; spans take about a second to arrive, and go elsewhere where an OTLP "
                "endpoint was set",
            )
        return [
            Span(
                row["span_id"],
                row["parent_span_id"],
                row["service"],
                row["name"],
                row["start_time"],
                row["end_time"],
                row["status"],
            )
            for row in rows
        ]

    async def trace_with(self, attribute: str, value: str) -> str:
        """The id of the oldest trace with a span that has this attribute. Raises NotFound."""
        rows = await self._fetch(BY_ATTRIBUTE, attribute, value)
        if not rows:
            raise NotFound("TRACE_NOT_FOUND", f"no trace has a span with {attribute} = {value!r}")
        return str(rows[0]["trace_id"])

    async def _fetch(self, query: str, *arguments: str | bool) -> list[asyncpg.Record]:
        try:
            connection = await asyncpg.connect(self.dsn, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError) as error:
            raise Unavailable(
                "TRACE_STORE_UNAVAILABLE", f"the trace store does not answer: {error}"
            ) from error
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
        except asyncpg.UndefinedTableError as error:
            raise Unavailable(
                "TRACE_STORE_UNAVAILABLE",
                "this stack keeps no traces of its own: they go to its OTLP endpoint",
            ) from error
        finally:
            await connection.close()
        return rows
