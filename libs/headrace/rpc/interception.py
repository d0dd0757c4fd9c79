"""What happens around every call that a server answers: span, deadline, validation, errors, metrics."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from prometheus_client import Counter, Histogram

from headrace import errors
from headrace.errors import HeadraceError
from headrace.rpc import deadline
from headrace.rpc.errors import DETAILS_KEY, code_of, from_rpc_error, to_status
from headrace.rpc.validation import RequestValidator, read_message
from headrace.runtime.outage import is_database_outage, is_outage
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

HANDLED = Counter(
    names.METRIC_RPC_HANDLED.removesuffix("_total"), "Calls answered, by status code.", ["method", "code"]
)
SECONDS = Histogram(
    names.METRIC_RPC_SECONDS,
    "Time to answer a call; of a stream, its whole length.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

# Health and reflection are answered by gRPC's own servicers, and are nobody's work.
_INFRASTRUCTURE: Final = "/grpc."

# Codes that are the server's fault (OpenTelemetry's semantic conventions for gRPC servers).
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Details = grpc.HandlerCallDetails


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the platform's own services."""

    def __init__(self, *, default_deadline: float) -> None:
        self._default_deadline = default_deadline
        self._validator = RequestValidator()
        self._streams: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], details: Details
    ) -> Handler | None:
        """Return the method's handler, wrapped."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_INFRASTRUCTURE):
            return handler
        if handler.response_streaming:
            return self._streaming(handler, details)
        return self._single(handler, details)

    def end_streams(self) -> None:
        """End the streams in progress with UNAVAILABLE, which tells their callers to connect again."""
        self._draining = True
        for task in self._streams:
            task.cancel()

    def _single(self, handler: Handler, details: Details) -> Handler:
        """Wrap a method that answers once."""
        streaming = handler.request_streaming
        behaviour: Any = handler.stream_unary if streaming else handler.unary_unary

        async def answer(request: Any, context: Context) -> Any:
            left = context.time_remaining()
            # A stream of requests takes as long as its sender has something to send.
            default = None if streaming or left is not None else self._default_deadline
            with (
                _observed(details, traced=True) as outcome,
                deadline.bounded(default if left is None else left),
            ):
                try:
                    async with asyncio.timeout(default):
                        return await behaviour(self._validated(handler, request), context)
                except Exception as error:
                    await _fail(error, details.method, context, outcome)

        make = grpc.stream_unary_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        return make(answer, None, handler.response_serializer)

    def _streaming(self, handler: Handler, details: Details) -> Handler:
        """Wrap a method that answers with a stream.

        The wrapper is a coroutine and not a generator, so that the span and the deadline, which are
        context variables, begin and end in the call's own task.
        """
        streaming = handler.request_streaming
        behaviour: Any = handler.stream_stream if streaming else handler.unary_stream

        async def answer(request: Any, context: Context) -> None:
            # A bidirectional stream is a connection, not a piece of work: it has no span.
            with (
                _observed(details, traced=not streaming) as outcome,
                deadline.bounded(context.time_remaining()),
                self._endable() as ended,
            ):
                try:
                    await write_all(behaviour(self._validated(handler, request), context), context)
                except asyncio.CancelledError:
                    if not ended():
                        raise
                    await _fail(_SHUTTING_DOWN, details.method, context, outcome)
                except Exception as error:
                    await _fail(error, details.method, context, outcome)

        make = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_stream_rpc_method_handler
        return make(answer, None, handler.response_serializer)

    def _validated(self, handler: Handler, request: Any) -> Any:
        """What was sent, one message's bytes or a stream of such, as messages that obey their rules."""
        parse = handler.request_deserializer
        assert parse is not None

        def checked(data: bytes) -> Message:
            message: Message = read_message(parse, data, "message of this method")
            self._validator.check(message)
            return message

        async def each(stream: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            async for data in stream:
                yield checked(data)

        return each(request) if handler.request_streaming else checked(request)

    @contextmanager
    def _endable(self) -> Iterator[Callable[[], bool]]:
        """Let `end_streams` cancel the current task; the yielded function answers whether it did."""
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)

        def ended() -> bool:
            if self._draining:
                task.uncancel()
            return self._draining

        try:
            yield ended
        finally:
            self._streams.discard(task)


_SHUTTING_DOWN: Final = errors.Unavailable("SHUTTING_DOWN", "the service is shutting down; connect again")


class _Outcome:
    """How a call ended."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK
        self.reason = ""
        self.message = ""


@contextmanager
def _observed(details: Details, *, traced: bool) -> Iterator[_Outcome]:
    """Run a call in its SERVER span, and count and time it."""
    outcome, start = _Outcome(), time.perf_counter()
    with _server_span(details) if traced else nullcontext(trace.INVALID_SPAN) as span:
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            HANDLED.labels(details.method, outcome.code.name).inc()
            SECONDS.labels(details.method).observe(time.perf_counter() - start)
            _describe(span, outcome)


def _server_span(details: Details) -> AbstractContextManager[Span]:
    metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
    service, _, method = details.method.lstrip("/").partition("/")
    return tracing.tracer(__name__).start_as_current_span(
        f"{service}/{method}",
        context=tracing.context_from(metadata.get("traceparent", ""), metadata.get("tracestate", "")),
        kind=SpanKind.SERVER,
        attributes={names.RPC_SYSTEM: "grpc", names.RPC_SERVICE: service, names.RPC_METHOD: method},
        # The outcome says what happened; the exception that ends a call is gRPC's own.
        record_exception=False,
        set_status_on_exception=False,
    )


def _describe(span: Span, outcome: _Outcome) -> None:
    span.set_attribute(names.RPC_GRPC_STATUS_CODE, outcome.code.value[0])
    if outcome.reason:
        span.set_attribute(names.ERROR_REASON, outcome.reason)
    if outcome.code in _SERVER_FAULTS:
        span.set_status(Status(StatusCode.ERROR, outcome.message))


async def write_all(responses: Any, context: Context) -> None:
    """Send a servicer's responses, be it an asynchronous generator or a coroutine that writes itself."""
    if inspect.isawaitable(responses):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


async def _fail(error: BaseException, method: str, context: Context, outcome: _Outcome) -> NoReturn:
    """End the call with the status that the error means; always raises."""
    if isinstance(error, grpc.aio.AbortError):
        outcome.code = _status_code(context.code())
        raise error
    known = _as_headrace_error(error)
    if known is None:
        logger.error("%s failed", method, exc_info=error)
        known = errors.Internal("INTERNAL", f"{method} failed inside the service; its log says why{_trace()}")
    status = to_status(known)
    outcome.code, outcome.reason, outcome.message = code_of(known), known.reason, status.message
    await context.abort(outcome.code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort always raises")


def _as_headrace_error(error: BaseException) -> HeadraceError | None:
    """Return what the error means to a caller; None where it is a defect."""
    match error:
        case HeadraceError():
            return error
        case grpc.RpcError():
            return from_rpc_error(error)
        case NotImplementedError():
            return errors.Internal("UNIMPLEMENTED", "this service does not implement the method")
        case TimeoutError():
            return errors.DeadlineExceeded("DEADLINE_EXCEEDED", "it was not done within the call's deadline")
        case _ if is_database_outage(error):
            return errors.Unavailable("DATABASE_UNAVAILABLE", f"the database is not there: {error}")
        case _ if is_outage(error):
            return errors.Unavailable(
                "DEPENDENCY_UNAVAILABLE", f"a part that is needed is not there: {error}"
            )
        case _:
            return None


def _status_code(code: object) -> grpc.StatusCode:
    """Return a servicer context's code, which is a number or a StatusCode, as the latter."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((one for one in grpc.StatusCode if one.value[0] == code), grpc.StatusCode.UNKNOWN)


def _trace() -> str:
    traceparent = tracing.current_traceparent()
    return f" (trace {traceparent.split('-')[1]})" if traceparent else ""
