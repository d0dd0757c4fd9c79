"""The spans that a test makes, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace.telemetry.sampling import WorkSampler


@cache
def _exporter() -> InMemorySpanExporter:
    # OpenTelemetry takes one provider for a process's whole life.
    provider = TracerProvider(sampler=WorkSampler(), shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@contextmanager
def recorded_spans() -> Iterator[InMemorySpanExporter]:
    """Yield an exporter that collects the process's spans from here on."""
    exporter = _exporter()
    exporter.clear()
    yield exporter
    exporter.clear()
