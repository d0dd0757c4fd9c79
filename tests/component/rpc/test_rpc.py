"""Server and channel together, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tests.support.waiting import PATIENCE_SECONDS

from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2, training_pb2_grpc
from headrace.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from headrace.rpc import deadline, options
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health

Answer = Callable[[Any], Any]


class Training(training_pb2_grpc.TrainingServiceServicer):
    """Answers GetRun and the streams with what a test puts in."""

    def __init__(self) -> None:
        self.get_run: Answer = lambda _: training_pb2.Run()
        self.left: float | None = None
        self.metadata: dict[str, str] = {}
        self.watch_closed = asyncio.Event()

    async def GetRun(self, request: Any, context: Any) -> Any:
        self.left = deadline.remaining()
        self.metadata = dict(context.invocation_metadata())
        answer = self.get_run(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def ListRuns(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for epoch in range(3):
                yield training_pb2.Run(id=request.id, epoch=epoch)
            if request.id == "missing":
                raise NotFound("RUN_NOT_FOUND", "no such run")
            if request.id == "endless":
                await asyncio.Event().wait()
        finally:
            self.watch_closed.set()

    async def StreamLogs(self, request: Any, context: Any) -> None:
        await context.write(training_pb2.StreamLogsResponse(lines=["one"]))
        await context.write(training_pb2.StreamLogsResponse(lines=["two"]))

    async def ListRecipes(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")


class Ingestion(ingestion_pb2_grpc.IngestionServiceServicer):
    async def AppendSamples(self, request_iterator: Any, context: Any) -> Any:
        count = 0
        async for _ in request_iterator:
            count += 1
        return ingestion_pb2.AppendSamplesResponse(appended_count=count)


for method in list(ingestion_pb2_grpc.IngestionServiceServicer.__dict__):
    if method[0].isupper() and method not in Ingestion.__dict__:
        setattr(Ingestion, method, None)


class Scheduling(scheduling_pb2_grpc.SchedulingServiceServicer):
    def __init__(self) -> None:
        self.submissions = 0

    async def SubmitJob(self, request: Any, context: Any) -> Any:
        self.submissions += 1
        raise Unavailable("AWAY", "not yet")

    async def AttachNode(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            yield scheduling_pb2.AttachNodeResponse(tasks=[scheduling_pb2.Task(job=request.node)])


class Stack:
    def __init__(
        self,
        training: Training,
        scheduling: Scheduling,
        port: int,
        health: Health,
        open_channel: grpc.aio.Channel,
    ) -> None:
        self.training = training
        self.scheduling = scheduling
        self.port = port
        self.health = health
        self.channel = open_channel
        self.runs = training_pb2_grpc.TrainingServiceStub(open_channel)
        self.samples = ingestion_pb2_grpc.IngestionServiceStub(open_channel)
        self.nodes = scheduling_pb2_grpc.SchedulingServiceStub(open_channel)


@asynccontextmanager
async def running(address: str = "127.0.0.1:0", **options: Any) -> AsyncIterator[Stack]:
    training, scheduling, health = Training(), Scheduling(), Health()
    bindings = [
        ServiceBinding(
            training_pb2_grpc.add_TrainingServiceServicer_to_server,
            training,
            "headrace.api.training.v1.TrainingService",
        ),
        ServiceBinding(
            ingestion_pb2_grpc.add_IngestionServiceServicer_to_server,
            Ingestion(),
            "headrace.api.ingestion.v1.IngestionService",
        ),
        ServiceBinding(
            scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server,
            scheduling,
            "headrace.api.scheduling.v1.SchedulingService",
        ),
    ]
    async with (
        serve(address, bindings, health=health, **options) as server,
        channel(f"127.0.0.1:{server.port}") as open_channel,
    ):
        yield Stack(training, scheduling, server.port, health, open_channel)


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running() as started:
        yield started


def get_run(run: str = "job-1") -> training_pb2.GetRunRequest:
    return training_pb2.GetRunRequest(id=run)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("training.v1.TrainingService/GetRun", "unary_unary"),
        ("training.v1.TrainingService/WatchRun", "unary_stream"),
        ("ingestion.v1.IngestionService/AppendSamples", "stream_unary"),
        ("scheduling.v1.SchedulingService/AttachNode", "stream_stream"),
    ],
)
async def test_bytes_that_are_no_message_are_told_so(stack: Stack, method: str, kind: str) -> None:
    call = getattr(stack.channel, kind)(f"/headrace.api.{method}")
    data = b"\xff\xff"
    answer = call(iter([data]) if kind.startswith("stream") else data, timeout=PATIENCE_SECONDS)
    with pytest.raises(InvalidArgument, match="the request is not a message of this method") as raised:
        await (answer if kind.endswith("unary") else anext(aiter(answer)))
    assert raised.value.reason == "UNREADABLE_REQUEST"


async def test_an_error_arrives_as_it_was_raised(stack: Stack) -> None:
    raised = NotFound(
        "RUN_NOT_FOUND",
        "there is no run “job-1”; headrace get runs lists them",
        fields=[FieldViolation("id", "names no run")],
        metadata={"id": "job-1"},
    )

    def fail(_: object) -> None:
        raise raised

    stack.training.get_run = fail
    with pytest.raises(NotFound) as caught:
        await stack.runs.GetRun(get_run())
    assert (caught.value.reason, caught.value.message) == (raised.reason, raised.message)
    assert caught.value.fields == raised.fields
    assert caught.value.metadata == raised.metadata


async def test_any_client_reads_reason_and_fields_from_the_standard_details(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await training_pb2_grpc.TrainingServiceStub(plain).GetRun(get_run(""))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "headrace.dev")
    assert bad_request.field_violations[0].field == "id"


async def test_a_defect_is_internal_and_says_nothing_of_the_inside(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ValueError("secret")

    stack.training.get_run = fail
    with pytest.raises(Internal) as caught:
        await stack.runs.GetRun(get_run())
    assert caught.value.reason == "INTERNAL"
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "DEPENDENCY_UNAVAILABLE"),
        (socket.gaierror(socket.EAI_AGAIN, "name resolution"), "DEPENDENCY_UNAVAILABLE"),
        (OSError("Multiple exceptions: ..."), "DEPENDENCY_UNAVAILABLE"),
        (asyncpg.TooManyConnectionsError("too many clients"), "DATABASE_UNAVAILABLE"),
        (asyncpg.InterfaceError("the underlying connection is closed"), "DATABASE_UNAVAILABLE"),
    ],
)
async def test_a_part_that_is_away_is_unavailable(stack: Stack, error: Exception, reason: str) -> None:
    def fail(_: object) -> None:
        raise error

    stack.training.get_run = fail
    with pytest.raises(Unavailable) as caught:
        await stack.runs.GetRun(get_run())
    assert caught.value.reason == reason


async def test_a_status_that_a_servicer_sets_itself_is_kept(stack: Stack) -> None:
    with pytest.raises(Internal, match="not for you") as caught:
        await stack.runs.ListRecipes(training_pb2.ListRecipesRequest())
    assert caught.value.reason == "PERMISSION_DENIED"


async def test_a_method_without_code_is_unimplemented(stack: Stack) -> None:
    with pytest.raises(Internal) as caught:
        await stack.runs.ListRuns(training_pb2.ListRunsRequest())
    assert caught.value.reason == "UNIMPLEMENTED"


async def test_a_huge_error_is_cut_and_still_arrives(stack: Stack) -> None:
    def fail(_: object) -> None:
        raise InvalidArgument(
            "BAD",
            "x" * 100_000,
            fields=[FieldViolation(f"field{number}", "y" * 500) for number in range(200)],
            metadata={"log": "z" * 100_000},
        )

    stack.training.get_run = fail
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await training_pb2_grpc.TrainingServiceStub(plain).GetRun(get_run())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_single_answer_has_a_deadline_where_the_caller_sets_none(stack: Stack) -> None:
    await stack.runs.GetRun(get_run())
    assert stack.training.left is not None
    # gRPC rounds a timeout up on the wire.
    assert 0 < stack.training.left < 11


async def test_a_callers_deadline_bounds_the_calls_made_within_it(stack: Stack) -> None:
    async def ask_again(request: Any) -> Any:
        if request.id == "outer":
            return await stack.runs.GetRun(get_run("inner"), timeout=60)
        return training_pb2.Run()

    stack.training.get_run = ask_again
    await stack.runs.GetRun(get_run("outer"), timeout=2)
    assert stack.training.left is not None
    assert stack.training.left < 3


async def test_no_call_is_made_once_the_deadline_has_passed(stack: Stack) -> None:
    with deadline.bounded(-1), pytest.raises(DeadlineExceeded):
        await stack.runs.GetRun(get_run())
    assert stack.training.left is None
    with deadline.bounded(-1), deadline.unbounded():
        await stack.runs.GetRun(get_run())


async def test_what_takes_too_long_is_deadline_exceeded(stack: Stack) -> None:
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    stack.training.get_run = hang
    with pytest.raises(DeadlineExceeded):
        await stack.runs.GetRun(get_run(), timeout=0.1)


async def test_the_server_sets_a_deadline_for_callers_that_never_do() -> None:
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    async with running(default_deadline=0.1) as stack:
        stack.training.get_run = hang
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.port}") as plain:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await training_pb2_grpc.TrainingServiceStub(plain).GetRun(get_run())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_nobody_there_is_unavailable_and_names_the_target(unused_tcp_port: int) -> None:
    async with channel(f"127.0.0.1:{unused_tcp_port}") as lonely:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{unused_tcp_port} does not answer"):
            await training_pb2_grpc.TrainingServiceStub(lonely).GetRun(get_run(), timeout=5)


async def test_a_call_is_repeated_while_the_server_restarts(unused_tcp_port: int) -> None:
    async with channel(f"127.0.0.1:{unused_tcp_port}") as patient:
        stub = training_pb2_grpc.TrainingServiceStub(patient)
        async with running(f"127.0.0.1:{unused_tcp_port}"):
            await stub.GetRun(get_run())
        async with running(f"127.0.0.1:{unused_tcp_port}"):
            await stub.GetRun(get_run())


async def test_an_idempotent_call_that_is_unavailable_is_repeated(stack: Stack) -> None:
    calls = 0

    def answer(_: object) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("AWAY", "not yet")
        return training_pb2.Run(id="job-1")

    stack.training.get_run = answer
    assert (await stack.runs.GetRun(get_run())).id == "job-1"
    assert calls == 3


async def test_a_call_that_could_do_its_work_twice_is_made_once(stack: Stack) -> None:
    with pytest.raises(Unavailable) as caught:
        await stack.nodes.SubmitJob(scheduling_pb2.SubmitJobRequest(pipeline="p"))
    assert caught.value.reason == "AWAY"
    assert stack.scheduling.submissions == 1


async def test_messages_may_have_64_mib(stack: Stack) -> None:
    stack.training.get_run = lambda _: training_pb2.Run(message="x" * (20 * 1024 * 1024))
    assert len((await stack.runs.GetRun(get_run())).message) == 20 * 1024 * 1024
    stack.training.get_run = lambda _: training_pb2.Run(message="x" * (65 * 1024 * 1024))
    with pytest.raises(ResourceExhausted):
        await stack.runs.GetRun(get_run())


async def test_a_response_stream_ends_with_its_error(stack: Stack) -> None:
    epochs = [run.epoch async for run in stack.runs.WatchRun(training_pb2.WatchRunRequest(id="job-1"))]
    assert epochs == [0, 1, 2]
    failing = aiter(stack.runs.WatchRun(training_pb2.WatchRunRequest(id="missing")))
    assert [(await anext(failing)).epoch for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NotFound) as caught:
        await anext(failing)
    assert caught.value.reason == "RUN_NOT_FOUND"
    with pytest.raises(InvalidArgument):
        await anext(aiter(stack.runs.WatchRun(training_pb2.WatchRunRequest())))


async def test_a_servicer_may_write_its_stream_itself(stack: Stack) -> None:
    request = training_pb2.StreamLogsRequest(id="job-1")
    assert [list(r.lines) async for r in stack.runs.StreamLogs(request)] == [["one"], ["two"]]


async def test_a_reader_that_leaves_ends_the_stream_at_the_server(stack: Stack) -> None:
    call = stack.runs.WatchRun(training_pb2.WatchRunRequest(id="endless"))
    async for run in call:
        if run.epoch == 2:
            break
    call.cancel()
    await asyncio.wait_for(stack.training.watch_closed.wait(), PATIENCE_SECONDS)


async def test_a_request_stream_is_validated_and_counted(stack: Stack) -> None:
    async def samples(*contents: bytes) -> AsyncIterator[Any]:
        for content in contents:
            yield ingestion_pb2.AppendSamplesRequest(dataset="d", json=content)

    assert (await stack.samples.AppendSamples(samples(b"{}", b"{}"))).appended_count == 2
    with pytest.raises(InvalidArgument) as caught:
        await stack.samples.AppendSamples(samples(b"{}", b""))
    assert caught.value.fields[0].field == "json"


async def test_a_bidirectional_stream_answers_each_request(stack: Stack) -> None:
    to_send: asyncio.Queue[Any] = asyncio.Queue()

    async def requests() -> AsyncIterator[Any]:
        while True:
            yield await to_send.get()

    call = stack.nodes.AttachNode(requests())
    responses = aiter(call)
    for name in ("a", "b"):
        request = scheduling_pb2.AttachNodeRequest(node=name, capacity=scheduling_pb2.Resources(cpu=1))
        to_send.put_nowait(request)
        response = await asyncio.wait_for(anext(responses), PATIENCE_SECONDS)
        assert response.tasks[0].job == name
    to_send.put_nowait(scheduling_pb2.AttachNodeRequest(node="no capacity"))
    with pytest.raises(InvalidArgument) as caught:
        await asyncio.wait_for(anext(responses), PATIENCE_SECONDS)
    assert caught.value.fields[0].field == "capacity"


async def test_a_reader_that_is_cancelled_ends_a_bidirectional_stream(stack: Stack) -> None:
    attached = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield scheduling_pb2.AttachNodeRequest(node="a", capacity=scheduling_pb2.Resources(cpu=1))
        await asyncio.Event().wait()

    async def attach() -> None:
        async for _ in stack.nodes.AttachNode(requests()):
            attached.set()

    attaching = asyncio.ensure_future(attach())
    await asyncio.wait_for(attached.wait(), PATIENCE_SECONDS)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching


async def test_a_stopping_server_ends_a_bidirectional_stream() -> None:
    async def requests() -> AsyncIterator[Any]:
        yield scheduling_pb2.AttachNodeRequest(node="a", capacity=scheduling_pb2.Resources(cpu=1))
        await asyncio.Event().wait()

    async with channel_after_server() as (stack, stop):
        responses = aiter(stack.nodes.AttachNode(requests()))
        await asyncio.wait_for(anext(responses), PATIENCE_SECONDS)
        stopping = asyncio.ensure_future(stop())
        with pytest.raises(Unavailable):
            await asyncio.wait_for(anext(responses), PATIENCE_SECONDS)
        await stopping


async def test_a_stopping_server_ends_endless_streams_and_finishes_calls() -> None:
    release = asyncio.Event()

    async def slow(_: object) -> Any:
        await release.wait()
        return training_pb2.Run(id="finished")

    async with channel_after_server() as (stack, stop):
        stack.training.get_run = slow
        call = asyncio.ensure_future(stack.runs.GetRun(get_run()))
        stream = stack.runs.WatchRun(training_pb2.WatchRunRequest(id="endless"))
        first = asyncio.Event()

        async def watch() -> None:
            async for _ in stream:
                first.set()

        watching = asyncio.ensure_future(watch())
        await asyncio.wait_for(first.wait(), PATIENCE_SECONDS)
        start = time.monotonic()
        stopping = asyncio.ensure_future(stop())
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(watching, PATIENCE_SECONDS)
        release.set()
        assert (await call).id == "finished"
        await stopping
        assert caught.value.reason == "SHUTTING_DOWN"
        assert time.monotonic() - start < 4


@asynccontextmanager
async def channel_after_server() -> AsyncIterator[tuple[Stack, Callable[[], Any]]]:
    server = running()
    stack = await server.__aenter__()

    async def stop() -> None:
        await inner.__aexit__(None, None, None)

    # The channel outlives the server in this test: a second one to the same port.
    async with channel(f"127.0.0.1:{stack.port}") as own:
        inner = server
        yield Stack(stack.training, stack.scheduling, stack.port, stack.health, own), stop


async def test_health_follows_the_runner(stack: Stack) -> None:
    stub = health_pb2_grpc.HealthStub(stack.channel)
    serving = health_pb2.HealthCheckResponse
    service = "headrace.api.training.v1.TrainingService"
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == serving.NOT_SERVING
    watched = aiter(stub.Watch(request))
    assert (await anext(watched)).status == serving.NOT_SERVING
    stack.health.set_ready("all", ready=True)
    assert (await asyncio.wait_for(anext(watched), PATIENCE_SECONDS)).status == serving.SERVING
    stack.health.drain()
    assert (await asyncio.wait_for(anext(watched), PATIENCE_SECONDS)).status == serving.NOT_SERVING
    with pytest.raises(NotFound):
        await stub.Check(health_pb2.HealthCheckRequest(service="elsewhere"))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_the_services(stack: Stack, version: str) -> None:
    call = stack.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest

    async def ask() -> AsyncIterator[Any]:
        yield request(list_services="")
        yield request(file_containing_symbol="headrace.api.training.v1.TrainingService")

    listed, described = [response async for response in call(ask())]
    served = {service.name for service in listed.list_services_response.service}
    assert "headrace.api.training.v1.TrainingService" in served
    assert "grpc.reflection.v1.ServerReflection" in served
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_taken_port_is_an_error(stack: Stack) -> None:
    with pytest.raises(OSError, match="is the port taken"):
        async with serve(f"127.0.0.1:{stack.port}", [], health=Health()):
            pass


async def test_a_quiet_stream_outlives_its_clients_pings() -> None:
    """A server that was not told of them counts the first pings, and sends the client away at the third."""
    every = 1000
    grpc_server = grpc.aio.server(options=options.pings_every(every))
    training = Training()
    training_pb2_grpc.add_TrainingServiceServicer_to_server(training, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    pinging = list({**dict(options.COMMON), "grpc.keepalive_time_ms": every}.items())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=pinging) as pinger:
        stream = training_pb2_grpc.TrainingServiceStub(pinger).WatchRun(
            training_pb2.WatchRunRequest(id="endless")
        )

        async def listen() -> None:
            async for _ in stream:
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listen(), 6 * every / 1000)
    await grpc_server.stop(0)
