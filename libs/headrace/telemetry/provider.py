"""Turning telemetry on for a process."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.telemetry import names
from headrace.telemetry.export import LossySpanProcessor
from headrace.telemetry.sampling import WorkSampler

logger = logging.getLogger(__name__)

EXPORT_SECONDS = 5.0
SHUTDOWN_SECONDS = 2.0


class Telemetry:
    """A process's telemetry, until `shutdown`."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider

    def shutdown(self, seconds: float = SHUTDOWN_SECONDS) -> None:
        """Export the last spans, waiting at most `seconds` for an exporter that does not answer."""
        if self._provider is None:
            return
        # A daemon thread: a stuck exporter does not keep the process alive.
        flusher = threading.Thread(target=self._provider.shutdown, name="telemetry shutdown", daemon=True)
        flusher.start()
        flusher.join(seconds)
        if flusher.is_alive():
            logger.warning("the last spans were not exported within %.1f s and are lost", seconds)


def setup(
    service: str, instance: str, otlp_endpoint: str, *, exporter: SpanExporter | None = None
) -> Telemetry:
    """Start exporting this process's spans as those of the service `headrace-<service>`.

    `otlp_endpoint` is "http://host:port" of an OTLP collector over gRPC; empty, with no `exporter`, turns
    exporting off: a caller's trace context is still passed on. Only a process's first call counts.
    """
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    # The exporter's own complaints: one line for each batch that is lost, not one for each retry.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    if exporter is None:
        if not otlp_endpoint:
            return Telemetry(None)
        exporter = _otlp_exporter(otlp_endpoint)
    provider = TracerProvider(
        sampler=WorkSampler(),
        resource=_resource(service, instance),
        span_limits=SpanLimits(max_span_attribute_length=2048),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(LossySpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _instrument_asyncpg()
    return Telemetry(provider)


def _otlp_exporter(endpoint: str) -> SpanExporter:
    # Loaded where it is used: with telemetry off it would cost start-up time for nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{endpoint!r} is not an OTLP endpoint; write http://host:port")
    return OTLPSpanExporter(endpoint=endpoint, insecure=parts.scheme == "http", timeout=EXPORT_SECONDS)


def _instrument_asyncpg() -> None:
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

    AsyncPGInstrumentor().instrument(  # type: ignore[no-untyped-call]
        skip_dep_check=True
    )


def _resource(service: str, instance: str) -> Resource:
    return Resource.create(
        {
            names.SERVICE_NAME: names.SERVICE_PREFIX + service,
            names.SERVICE_NAMESPACE: "headrace",
            names.SERVICE_INSTANCE_ID: instance,
            names.SERVICE_VERSION: version(),
        }
    )


def version() -> str:
    """Return the installed version of Headrace."""
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "0"
