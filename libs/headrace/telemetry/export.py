"""Handing spans to the exporter without ever waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

from headrace.telemetry import names

SPANS = Counter(
    names.METRIC_SPANS.removesuffix("_total"),
    "Spans by what became of them: exported, failed (the exporter gave up), dropped (the queue was full).",
    ["outcome"],
)
_EXPORTED = SPANS.labels("exported")
_FAILED = SPANS.labels("failed")
_DROPPED = SPANS.labels("dropped")

MAX_QUEUE = 8192
MAX_BATCH = 512
DELAY_MILLISECONDS = 200.0


class LossySpanProcessor(SpanProcessor):
    """Queues ended spans for an exporter in a background thread; when the queue is full it drops.

    `on_end` is on the path of every request, so it only counts and appends. Dropping here, and not in
    the batch processor's own queue, keeps the loss countable and the log quiet.
    """

    def __init__(self, exporter: SpanExporter, *, max_queue: int = MAX_QUEUE) -> None:
        self._exporter = _CountingExporter(exporter)
        self._max_queue = max_queue
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=max_queue,
            schedule_delay_millis=DELAY_MILLISECONDS,
            max_export_batch_size=min(MAX_BATCH, max_queue),
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing happens at a span's start."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, or count it as dropped."""
        if self._exporter.waiting >= self._max_queue:
            _DROPPED.inc()
            return
        self._exporter.add_waiting()
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Export what is queued and stop; takes as long as the exporter does."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what is queued now; takes as long as the exporter does."""
        return self._batches.force_flush(timeout_millis)


class _CountingExporter(SpanExporter):
    """Counts what an exporter does with its spans, and how many wait for it."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self.waiting = 0

    def add_waiting(self) -> None:
        with self._lock:
            self.waiting += 1

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            self.waiting -= len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:
            _FAILED.inc(len(spans))
            raise
        (_EXPORTED if result is SpanExportResult.SUCCESS else _FAILED).inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)
