"""What client and server leave behind in a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.support.spans import recorded_spans
from tests.support.waiting import PATIENCE_SECONDS

from headrace.api.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from headrace.errors import DeadlineExceeded, Internal, NotFound
from headrace.rpc import deadline
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health
from headrace.telemetry import names, tracing

SERVICE = "headrace.api.scheduling.v1.SchedulingService"
GET, WATCH = f"{SERVICE}/GetJob", f"{SERVICE}/WatchJob"
JOB = "4f7f2b3e-7b0c-4a9f-9a5e-0d3c9c0f6a11"


class Scheduling:
    async def GetJob(self, request: Any, _context: Any) -> Any:
        with tracing.span("look the job up"):
            if request.id != JOB:
                raise NotFound("JOB_NOT_FOUND", "no such job")
        return scheduling_pb2.Job(id=JOB)

    async def ListJobs(self, _request: Any, _context: Any) -> Any:
        raise ValueError("a defect")

    async def WatchJob(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield scheduling_pb2.Job(id=request.id)

    async def AttachNode(self, requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield scheduling_pb2.AttachNodeResponse()

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)
        return None


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    with recorded_spans() as exporter:
        yield exporter


@pytest.fixture
async def stub(
    spans: InMemorySpanExporter,
) -> AsyncIterator[scheduling_pb2_grpc.SchedulingServiceAsyncStub]:
    binding = ServiceBinding(
        scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server, Scheduling(), SERVICE
    )
    async with (
        serve("127.0.0.1:0", [binding], health=Health()) as server,
        channel(f"127.0.0.1:{server.port}") as opened,
    ):
        yield scheduling_pb2_grpc.SchedulingServiceStub(opened)


Stub = scheduling_pb2_grpc.SchedulingServiceStub


async def finished(spans: InMemorySpanExporter, count: int) -> dict[tuple[str, SpanKind], ReadableSpan]:
    """Wait for the server's span, which ends after the answer has left."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(spans.get_finished_spans()) < count:
            await asyncio.sleep(0.01)
    return {(span.name, span.kind): span for span in spans.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_a_call_is_one_trace_from_the_caller_to_the_servicers_work(
    stub: Any, spans: InMemorySpanExporter
) -> None:
    with tracing.span("caller"):
        await stub.GetJob(scheduling_pb2.GetJobRequest(id=JOB))
    by_name = await finished(spans, 4)
    caller = by_name["caller", SpanKind.INTERNAL]
    client, server = by_name[GET, SpanKind.CLIENT], by_name[GET, SpanKind.SERVER]
    work = by_name["look the job up", SpanKind.INTERNAL]
    assert parent_of(client) == id_of(caller)
    assert parent_of(server) == id_of(client)
    assert parent_of(work) == id_of(server)
    assert len({span.context.trace_id for span in by_name.values() if span.context}) == 1
    assert dict(server.attributes or {}) == {
        names.RPC_SYSTEM: "grpc",
        names.RPC_SERVICE: SERVICE,
        names.RPC_METHOD: "GetJob",
        names.RPC_GRPC_STATUS_CODE: 0,
    }


async def test_a_callers_mistake_is_an_error_at_the_client_only(
    stub: Any, spans: InMemorySpanExporter
) -> None:
    with pytest.raises(NotFound):
        await stub.GetJob(scheduling_pb2.GetJobRequest(id=JOB[:-1] + "0"))
    by_name = await finished(spans, 3)
    client, server = by_name[GET, SpanKind.CLIENT], by_name[GET, SpanKind.SERVER]
    assert client.status.status_code is StatusCode.ERROR
    assert server.status.status_code is StatusCode.UNSET
    for span in (client, server):
        assert span.attributes is not None
        assert span.attributes[names.ERROR_REASON] == "JOB_NOT_FOUND"
        assert span.attributes[names.RPC_GRPC_STATUS_CODE] == 5


async def test_a_defect_is_an_error_at_the_server(stub: Any, spans: InMemorySpanExporter) -> None:
    with pytest.raises(Internal):
        await stub.ListJobs(scheduling_pb2.ListJobsRequest())
    by_name = await finished(spans, 2)
    assert by_name[f"{SERVICE}/ListJobs", SpanKind.SERVER].status.status_code is StatusCode.ERROR


async def test_a_response_stream_is_one_span_at_each_end(stub: Any, spans: InMemorySpanExporter) -> None:
    assert len([job async for job in stub.WatchJob(scheduling_pb2.WatchJobRequest(id=JOB))]) == 3
    by_name = await finished(spans, 2)
    assert parent_of(by_name[WATCH, SpanKind.SERVER]) == id_of(by_name[WATCH, SpanKind.CLIENT])


async def test_a_bidirectional_stream_leaves_none(stub: Any, spans: InMemorySpanExporter) -> None:
    async def reports() -> AsyncIterator[Any]:
        yield scheduling_pb2.AttachNodeRequest(node="n", capacity=scheduling_pb2.Resources())

    assert len([answer async for answer in stub.AttachNode(reports())]) == 1
    assert spans.get_finished_spans() == ()


async def test_a_stream_that_is_not_opened_has_a_span_all_the_same(
    stub: scheduling_pb2_grpc.SchedulingServiceAsyncStub, spans: InMemorySpanExporter
) -> None:
    with deadline.bounded(-1), pytest.raises(DeadlineExceeded):
        await anext(aiter(stub.WatchJob(scheduling_pb2.WatchJobRequest(id=JOB))))
    assert [span.name for span in spans.get_finished_spans()] == [WATCH]
