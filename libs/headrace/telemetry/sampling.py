"""Which spans are kept: all that belong to somebody's work, none of the polling in between."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from headrace.telemetry import names

_DATABASE_KEYS = (names.DB_SYSTEM, names.DB_SYSTEM_NAME)


class WorkSampler(Sampler):
    """Follows the parent's decision; of spans without a parent drops those of a database client.

    A service asks its database on timers (outbox, leases, reconcile). Such a statement is of interest
    inside a trace and noise as a trace of its own.
    """

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide for one span about to start."""
        parent = trace.get_current_span(parent_context).get_span_context()
        kept = parent.trace_flags.sampled if parent.is_valid else not _is_database_call(kind, attributes)
        return SamplingResult(
            Decision.RECORD_AND_SAMPLE if kept else Decision.DROP,
            attributes if kept else None,
            parent.trace_state if parent.is_valid else trace_state,
        )

    def get_description(self) -> str:
        """Name the sampler, as OpenTelemetry asks."""
        return "WorkSampler"


def _is_database_call(kind: SpanKind | None, attributes: Attributes) -> bool:
    return kind is SpanKind.CLIENT and any(key in (attributes or ()) for key in _DATABASE_KEYS)
