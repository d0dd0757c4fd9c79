"""Channels to the platform's services."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from headrace import errors
from headrace.rpc import deadline, options
from headrace.rpc.errors import from_rpc_error
from headrace.telemetry import names, tracing

DEFAULT_DEADLINE_SECONDS: Final = 10.0

# Repeating these could do the work twice; everything else is idempotent by its contract.
_NOT_RETRIED: Final = (
    {"service": "headrace.api.ingestion.v1.IngestionService", "method": "AppendSamples"},
    {"service": "headrace.api.scheduling.v1.SchedulingService", "method": "SubmitJob"},
    {"service": "headrace.api.scheduling.v1.SchedulingService", "method": "AttachNode"},
    {"service": "headrace.api.inference.v1.RequestService", "method": "CancelRequest"},
    {"service": "headrace.api.inference.v1.RequestService", "method": "ReplayRequest"},
)
_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {"name": _NOT_RETRIED},
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
        ],
        # A server that is down is left alone once half of the calls to it fail.
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
    }
)
_OPTIONS: Final = (
    *options.COMMON,
    ("grpc.service_config", _SERVICE_CONFIG),
    # gRPC's default waits up to two minutes before it looks whether a restarted server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The services talk to each other, never through a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)

CallDetails = grpc.aio.ClientCallDetails
Continuation = Callable[[CallDetails, Any], Awaitable[Any]]


def channel(target: str, *, default_deadline: float = DEFAULT_DEADLINE_SECONDS) -> grpc.aio.Channel:
    """Return a channel to "host:port"; close it when done.

    Calls raise HeadraceError instead of AioRpcError. A call that answers once has `default_deadline`
    seconds unless it sets a timeout; every call ends by the deadline of the work that makes it. Idempotent
    calls are repeated while nobody answers. Streams are read by iterating over them.
    """
    prepare = _Preparation(target, default_deadline)
    return grpc.aio.insecure_channel(
        target,
        options=_OPTIONS,
        interceptors=[
            _UnaryUnary(prepare),
            _UnaryStream(prepare),
            _StreamUnary(prepare),
            _StreamStream(prepare),
        ],
    )


class _Preparation:
    """What every call to one target gets before it leaves, and what its failure means."""

    def __init__(self, target: str, default_deadline: float) -> None:
        self._target = target
        self.default_deadline = default_deadline

    def details(self, details: CallDetails, default: float | None = None) -> CallDetails:
        """Add the deadline and the current span's context."""
        timeout = details.timeout if details.timeout is not None else default
        left = deadline.remaining()
        if left is not None:
            if left <= 0:
                raise errors.DeadlineExceeded(
                    "DEADLINE_EXCEEDED", f"no time was left to ask {self._target} for {_name(details)}"
                )
            timeout = left if timeout is None else min(timeout, left)
        metadata = grpc.aio.Metadata(*_pairs(details))
        traceparent = tracing.current_traceparent()
        if traceparent and metadata.get("traceparent") is None:
            metadata["traceparent"] = traceparent
            if tracestate := tracing.current_tracestate():
                metadata["tracestate"] = tracestate
        return CallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)

    @contextmanager
    def failures(self, span: Span = trace.INVALID_SPAN) -> Iterator[None]:
        """Raise a failed call's error as the HeadraceError that it means."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error, self._target)
            span.set_attribute(names.RPC_GRPC_STATUS_CODE, error.code().value[0])
            span.set_attribute(names.ERROR_REASON, known.reason)
            span.set_status(Status(StatusCode.ERROR, known.message))
            raise known from error

    def start_span(self, details: CallDetails) -> Span:
        """Start the CLIENT span of a call; whoever asks for it ends it."""
        name = _name(details)
        service, _, method = name.partition("/")
        host, _, port = self._target.rpartition(":")
        attributes: dict[str, str | int] = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_SERVICE: service,
            names.RPC_METHOD: method,
            names.SERVER_ADDRESS: host or self._target,
        }
        if host and port.isdigit():
            attributes[names.SERVER_PORT] = int(port)
        return tracing.tracer(__name__).start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def _pairs(details: CallDetails) -> Iterable[tuple[str, str | bytes]]:
    return details.metadata or ()


def _name(details: CallDetails) -> str:
    # grpc.aio hands interceptors bytes, whatever its stubs say.
    method: object = details.method
    return (method.decode() if isinstance(method, bytes) else str(method)).lstrip("/")


async def _single(
    prepare: _Preparation,
    continuation: Continuation,
    details: CallDetails,
    request: Any,
    default: float | None,
) -> Any:
    span = prepare.start_span(details)
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        call = await continuation(prepare.details(details, default), request)
        with prepare.failures(span):
            await call
        span.set_attribute(names.RPC_GRPC_STATUS_CODE, grpc.StatusCode.OK.value[0])
        # The call and not its response: the caller may also ask it for metadata.
        return call


async def _responses(prepare: _Preparation, call: Any, span: Span) -> AsyncIterator[Any]:
    try:
        with prepare.failures(span):
            async for response in call:
                yield response
    finally:
        span.end()
        # A caller that stops reading wants no more of it.
        call.cancel()


class _Interceptor:
    """grpc.aio registers an interceptor for one kind of call only: hence four classes."""

    def __init__(self, prepare: _Preparation) -> None:
        self._prepare = prepare


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: CallDetails, request: Any
    ) -> Any:
        default = self._prepare.default_deadline
        return await _single(self._prepare, continuation, client_call_details, request, default)


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Continuation, client_call_details: CallDetails, request_iterator: Any
    ) -> Any:
        return await _single(self._prepare, continuation, client_call_details, request_iterator, None)


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: CallDetails, request: Any
    ) -> Any:
        span = self._prepare.start_span(client_call_details)
        try:
            # Within the span, which is what the call carries as its parent.
            with trace.use_span(span):
                call = await continuation(self._prepare.details(client_call_details), request)
        except BaseException:
            span.end()
            raise
        return _responses(self._prepare, call, span)


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Continuation, client_call_details: CallDetails, request_iterator: Any
    ) -> Any:
        # A bidirectional stream is a connection, not a piece of work: it has no span.
        call = await continuation(self._prepare.details(client_call_details), request_iterator)
        return _responses(self._prepare, call, trace.INVALID_SPAN)
