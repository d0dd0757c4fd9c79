"""Spans and W3C trace context, as strings where they cross a border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

__all__ = [
    "Span",
    "SpanKind",
    "context_from",
    "current_traceparent",
    "current_tracestate",
    "is_sampled",
    "new_traceparent",
    "span",
    "tracer",
]

_PROPAGATOR = TraceContextTextMapPropagator()
# Asked for once: looking it up costs more than a span that nobody exports. Until there is a provider it makes
# such spans, and from then on the provider's.
_TRACER = trace.get_tracer("headrace")


def tracer(name: str) -> Tracer:
    """Return the tracer for one library or service, named like its package."""
    return trace.get_tracer(name)


def current_traceparent() -> str:
    """Return the current span's W3C traceparent; "" where there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def is_sampled(traceparent: str) -> bool:
    """Whether a traceparent says that its trace is recorded."""
    return _span_context(traceparent).trace_flags.sampled if traceparent else False


def new_traceparent() -> str:
    """Return the traceparent of a trace that begins here, for programs that export no spans themselves.

    Whoever continues it draws the trace without this first span.
    """
    ids = RandomIdGenerator()
    return f"00-{ids.generate_trace_id():032x}-{ids.generate_span_id():016x}-01"


def current_tracestate() -> str:
    """Return the current span's W3C tracestate; "" where there is none."""
    return trace.get_current_span().get_span_context().trace_state.to_header()


def context_from(traceparent: str, tracestate: str = "") -> Context:
    """Return the context that a traceparent describes; an empty one where it is empty or malformed."""
    if not traceparent:
        return Context()
    carrier = {"traceparent": traceparent}
    if tracestate:
        carrier["tracestate"] = tracestate
    return _PROPAGATOR.extract(carrier, context=Context())


def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: str | None = None,
    links: Sequence[str] = (),
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AbstractContextManager[Span]:
    """Run the block in a new span, and record the exception that leaves it.

    `parent` is a traceparent: the new span continues that trace, or starts a new one where it is "".
    None: the current span is the parent. `links` are traceparents, of which malformed ones are left out.
    """
    return _TRACER.start_as_current_span(
        name,
        context=None if parent is None else context_from(parent),
        kind=kind,
        attributes=attributes,
        links=[Link(context) for context in map(_span_context, links) if context.is_valid],
    )


def _span_context(traceparent: str) -> SpanContext:
    return trace.get_current_span(context_from(traceparent)).get_span_context()
