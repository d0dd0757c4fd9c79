from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from headrace.telemetry import logs, names, tracing
from headrace.telemetry.export import SPANS, LossySpanProcessor
from headrace.telemetry.sampling import WorkSampler

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"
DATABASE = {names.DB_SYSTEM: "postgresql"}


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exported: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider(sampler=WorkSampler(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return provider.get_tracer("test")


def exported_names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


def test_a_database_call_on_its_own_is_dropped(tracer: trace.Tracer, exported: InMemorySpanExporter) -> None:
    tracer.start_span("SELECT", kind=SpanKind.CLIENT, attributes=DATABASE).end()
    assert exported_names(exported) == []


def test_a_database_call_inside_work_is_kept(tracer: trace.Tracer, exported: InMemorySpanExporter) -> None:
    with tracer.start_as_current_span("work"):
        tracer.start_span("SELECT", kind=SpanKind.CLIENT, attributes=DATABASE).end()
    assert exported_names(exported) == ["SELECT", "work"]


def test_other_work_without_a_parent_is_kept(tracer: trace.Tracer, exported: InMemorySpanExporter) -> None:
    tracer.start_span("call", kind=SpanKind.CLIENT).end()
    assert exported_names(exported) == ["call"]


@pytest.mark.parametrize(("parent", "kept"), [(PARENT, ["work"]), (UNSAMPLED, [])])
def test_the_callers_decision_is_followed(
    tracer: trace.Tracer, exported: InMemorySpanExporter, parent: str, kept: list[str]
) -> None:
    tracer.start_span("work", context=tracing.context_from(parent)).end()
    assert exported_names(exported) == kept


@pytest.mark.parametrize("text", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_malformed_traceparent_is_no_parent(text: str) -> None:
    assert not trace.get_current_span(tracing.context_from(text)).get_span_context().is_valid


def test_without_telemetry_a_callers_context_is_passed_on() -> None:
    assert tracing.current_traceparent() == ""
    with trace.use_span(trace.NoOpTracer().start_span("work", context=tracing.context_from(PARENT))):
        assert tracing.current_traceparent() == PARENT


class StuckExporter(SpanExporter):
    """Takes its first batch and never returns until released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.release.wait()
        return SpanExportResult.SUCCESS


class BrokenExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("broken")


def count(outcome: str) -> float:
    value = SPANS.labels(outcome)._value.get()
    assert isinstance(value, float)
    return value


@pytest.fixture
def stuck() -> Iterator[StuckExporter]:
    exporter = StuckExporter()
    yield exporter
    exporter.release.set()


def test_a_stuck_exporter_slows_no_caller_and_drops_are_counted(stuck: StuckExporter) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LossySpanProcessor(stuck, max_queue=10)
    provider.add_span_processor(processor)
    tracer, dropped = provider.get_tracer("test"), count("dropped")

    tracer.start_span("first").end()
    processor_thread_has_it = stuck.entered.wait(5)
    start = time.perf_counter()
    for _ in range(1000):
        tracer.start_span("more").end()
    seconds = time.perf_counter() - start

    assert processor_thread_has_it
    assert seconds < 1
    assert count("dropped") - dropped == 990
    stuck.release.set()
    provider.shutdown()


def test_a_broken_exporter_fails_no_caller_and_its_losses_are_counted() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LossySpanProcessor(BrokenExporter()))
    failed = count("failed")
    provider.get_tracer("test").start_span("work").end()
    provider.shutdown()
    assert count("failed") - failed == 1


PROCESS = """
import socket, sys, time
from headrace import telemetry
from headrace.telemetry import tracing, logs
logs.setup("INFO")
{before}
started = telemetry.setup("ingestion", "one", endpoint)
start = time.perf_counter()
for _ in range(2000):
    with tracing.span("work"):
        pass
worked = time.perf_counter() - start
start = time.perf_counter()
started.shutdown(1.0)
print(worked, time.perf_counter() - start)
"""
NOBODY = """
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
"""


@pytest.mark.parametrize("answers", ["refused", "silent"])
def test_a_collector_that_is_not_there_costs_next_to_nothing(answers: str) -> None:
    before = NOBODY + ("listener.listen()\n" if answers == "silent" else "")
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS).format(before=before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    worked, shutdown = map(float, process.stdout.split())
    assert worked < 2
    assert shutdown < 2


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from headrace import telemetry; telemetry.setup('a', 'b', 'collector:4317')"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert "write http://host:port" in process.stderr


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("headrace.test", logging.INFO, __file__, 1, message, (), exc_info)


def test_a_log_line_carries_its_trace() -> None:
    with trace.use_span(trace.get_current_span(tracing.context_from(PARENT))):
        text = logs.TextFormatter().format(record("stored"))
        entry = json.loads(logs.JsonFormatter().format(record("stored")))
    assert "INFO    headrace.test: stored trace=0af7651916cd43dd8448eb211c80319c" in text
    assert entry["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert entry["span_id"] == "b7ad6b7169203331"


def test_a_log_line_carries_its_exception() -> None:
    failed = record("failed", ValueError("broken"))
    assert "ValueError: broken" in logs.TextFormatter().format(failed)
    entry = json.loads(logs.JsonFormatter().format(failed))
    assert "ValueError: broken" in entry["exception"]
    assert "trace_id" not in entry
