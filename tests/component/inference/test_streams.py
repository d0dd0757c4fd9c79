"""Streams of requests through Envoy: each answered as a request of its own, in the streams' order."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as blocking
from tests.support.front import SIGNATURE, Front, ModelServer, front, model_server, request, wiring
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.streams import MAX_IN_FLIGHT
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.wiring import Patience

MODEL = "m"
SECONDS = 60

Stream = grpc.aio.StreamStreamCall[service_pb2.ModelInferRequest, service_pb2.ModelStreamInferResponse]


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as started:
        yield started


@pytest.fixture
async def made(server: ModelServer, tmp_path: Path) -> AsyncIterator[Front]:
    async with front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as started:
        yield started


@pytest.fixture
async def stream(made: Front) -> AsyncIterator[Stream]:
    async with made.channel() as opened:
        yield service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelStreamInfer(timeout=SECONDS)


async def asked(server: ModelServer) -> int:
    return len(server.asked)


async def test_each_request_goes_by_the_weights_of_its_moment(made: Front, stream: Stream) -> None:
    await stream.write(request(MODEL, id="first"))
    answer = await stream.read()
    assert (answer.infer_response.id, answer.infer_response.model_version) == ("first", "3")
    made.control_plane.update({MODEL: Route({4: 100}, SIGNATURE)})
    await made.until_routed(MODEL, {4: 100})
    await stream.write(request(MODEL, id="second"))
    answer = await stream.read()
    assert (answer.infer_response.id, answer.infer_response.model_version) == ("second", "4")
    assert answer.infer_response.parameters["triton_final_response"].bool_param
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_answers_come_in_the_order_of_their_requests(server: ModelServer, stream: Stream) -> None:
    server.held = held = asyncio.Event()
    await stream.write(request(MODEL, id="slow"))
    await eventually(lambda: asked(server), lambda count: count == 1)
    server.held = None
    for request_id in ("quick", "quicker"):
        await stream.write(request(MODEL, id=request_id))
    await eventually(lambda: asked(server), lambda count: count == 3)
    held.set()
    assert [(await stream.read()).infer_response.id for _ in range(3)] == ["slow", "quick", "quicker"]


async def test_an_error_stands_in_its_requests_place(stream: Stream) -> None:
    for name in ("nobody", MODEL):
        await stream.write(request(name, id=name))
    wrong, right = await stream.read(), await stream.read()
    assert (wrong.infer_response.id, wrong.error_message) == ("nobody", "no model nobody is deployed")
    assert (right.infer_response.id, right.error_message) == (MODEL, "")


async def test_an_error_ends_a_stream_that_asks_for_its_status(made: Front) -> None:
    async with made.channel() as opened:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelStreamInfer(
            timeout=SECONDS, metadata=[("triton_grpc_error", "true")]
        )
        await stream.write(request("nobody"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == "no model nobody is deployed"


async def test_giving_a_stream_up_reaches_the_server(server: ModelServer, stream: Stream) -> None:
    server.held = asyncio.Event()
    for _ in range(3):
        await stream.write(request(MODEL))
    await eventually(lambda: asked(server), lambda count: count == 3)
    assert all(0 < (left or 0) <= SECONDS for left in server.seconds_left)
    stream.cancel()
    await asyncio.wait_for(server.cancelled.wait(), SECONDS)


async def test_a_stream_is_answered_however_much_is_asked_at_once(
    server: ModelServer, stream: Stream
) -> None:
    server.held = held = asyncio.Event()
    many = 3 * MAX_IN_FLIGHT
    for number in range(many):
        await stream.write(request(MODEL, id=str(number)))
    await eventually(lambda: asked(server), lambda count: count == MAX_IN_FLIGHT)
    held.set()
    server.held = None
    assert [(await stream.read()).infer_response.id for _ in range(many)] == [str(n) for n in range(many)]


async def test_a_streams_requests_are_its_clients(server: ModelServer, tmp_path: Path) -> None:
    async with front(tmp_path, wiring([server], client_rate=5), {MODEL: {3: 100}}) as made:
        other = Proxy(int(made.address.rpartition(":")[2]), source="127.0.0.2")
        await other.open()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{other.port}") as opened:
            stream = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelStreamInfer(timeout=SECONDS)
            for _ in range(50):
                await stream.write(request(MODEL))
            errors = [(await stream.read()).error_message for _ in range(50)]
        assert any(error.startswith("more requests a second than one client") for error in errors)
        # The others have what is theirs.
        async with made.channel() as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            assert (await stub.ModelInfer(request(MODEL), timeout=SECONDS)).model_version == "3"
        await other.cut()


async def test_the_blocking_client_streams(made: Front) -> None:
    def answered() -> list[tuple[str, str]]:
        answers: queue.Queue[blocking.InferResult] = queue.Queue()
        tensor = blocking.InferInput("features", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))
        with blocking.InferenceServerClient(made.address) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            for request_id in ("first", "second"):
                client.async_stream_infer(MODEL, [tensor], request_id=request_id)
            responses = [answers.get(timeout=SECONDS).get_response() for _ in range(2)]
            client.stop_stream()
        return [(response.id, response.model_version) for response in responses]

    assert await asyncio.to_thread(answered) == [("first", "3"), ("second", "3")]


LARGE_BYTES = 10_000


def large(**fields: str) -> service_pb2.ModelInferRequest:
    found = request(MODEL, **fields)
    found.raw_input_contents[:] = [bytes(LARGE_BYTES)]
    return found


async def settled(stub: service_pb2_grpc.GRPCInferenceServiceStub, server: ModelServer, count: int) -> None:
    """Wait until so many were asked; what would be asked at once, too, has come after some round trips."""
    await eventually(lambda: asked(server), lambda found: found >= count)
    assert await asked_after_trips(stub, server) == (count, count)


@asynccontextmanager
async def small_front(
    server: ModelServer, folder: Path, stream_bytes: int
) -> AsyncIterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """A client of an inference service that holds so much of all streams."""
    async with (
        front(folder, wiring([server]), {MODEL: {3: 100}}, stream_bytes=stream_bytes) as made,
        made.channel() as opened,
    ):
        yield service_pb2_grpc.GRPCInferenceServiceStub(opened)


async def test_streams_hold_no_more_than_so_many_bytes_and_go_on_when_there_is_room(
    server: ModelServer, tmp_path: Path
) -> None:
    many, streams = 12, []
    async with small_front(server, tmp_path, 10 * LARGE_BYTES) as stub:
        server.held = held = asyncio.Event()
        # A stream has a quarter of it. What is larger than the room that is left is taken: nobody knew.
        for count in (3, 6, 9, 10, 10):
            streams.append(stub.ModelStreamInfer(timeout=SECONDS))
            for number in range(many):
                await streams[-1].write(large(id=str(number)))
            await settled(stub, server, count)
        server.held = None
        held.set()
        for stream in streams:
            ids = [(await stream.read()).infer_response.id for _ in range(many)]
            assert ids == [str(number) for number in range(many)]


async def test_a_streamed_request_that_is_larger_than_all_may_be_passes_alone(
    server: ModelServer, tmp_path: Path
) -> None:
    async with small_front(server, tmp_path, LARGE_BYTES // 2) as stub:
        server.held = held = asyncio.Event()
        streams = []
        for _ in range(2):
            streams.append(stub.ModelStreamInfer(timeout=SECONDS))
            for _ in range(3):
                await streams[-1].write(large())
            await settled(stub, server, 1)
        server.held = None
        held.set()
        for stream in streams:
            for _ in range(3):
                assert (await stream.read()).infer_response.model_version == "3"


async def test_a_stream_that_is_given_up_gives_back_its_bytes(server: ModelServer, tmp_path: Path) -> None:
    async with small_front(server, tmp_path, LARGE_BYTES // 2) as stub:
        server.held = asyncio.Event()
        streams = []
        for _ in range(3):
            streams.append(stub.ModelStreamInfer(timeout=SECONDS))
            await streams[-1].write(large())
            await settled(stub, server, 1)
        first, waiting, last = streams
        # One that waits holds up nobody.
        waiting.cancel()
        server.held = None
        first.cancel()
        assert (await last.read()).infer_response.model_version == "3"


async def test_streams_that_waited_for_room_do_not_fill_it_many_times_over(
    server: ModelServer, tmp_path: Path
) -> None:
    async with small_front(server, tmp_path, LARGE_BYTES // 2) as stub:
        server.held = asyncio.Event()
        streams = []
        for _ in range(20):
            streams.append(stub.ModelStreamInfer(timeout=SECONDS))
            await streams[-1].write(large())
            await settled(stub, server, 1)
        streams[0].cancel()
        await eventually(lambda: asked(server), lambda found: found > 1)
        # One, and on a machine that is slow to hand over what has come, some more.
        _, found = await asked_after_trips(stub, server)
        assert found < len(streams) // 2


async def test_who_does_not_read_its_answers_holds_bytes_for_so_long_and_no_longer(
    server: ModelServer, tmp_path: Path
) -> None:
    wired = wiring([server], patience=Patience(reading=1))
    server.answer_bytes = 1 << 20
    async with (
        # One request at a time.
        front(tmp_path, wired, {MODEL: {3: 100}}, stream_bytes=1) as made,
        made.channel() as opened,
        # Envoy, which takes many answers for a client that reads none, is left out.
        grpc.aio.insecure_channel(f"127.0.0.1:{made.xds_port}") as direct,
    ):
        deaf = service_pb2_grpc.GRPCInferenceServiceStub(direct).ModelStreamInfer(timeout=SECONDS)
        for _ in range(MAX_IN_FLIGHT):
            await deaf.write(request(MODEL))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        answered, _ = await eventually(
            lambda: asked_after_trips(stub, server), lambda counts: 0 < counts[0] == counts[1]
        )
        assert answered < MAX_IN_FLIGHT
        other = stub.ModelStreamInfer(timeout=SECONDS)
        await other.write(request(MODEL))
        assert (await other.read()).infer_response.model_version == "3"
        # What it was answered it can read, and then why there is no more.
        for _ in range(answered):
            assert (await deaf.read()).infer_response.model_version == "3"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await deaf.read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert raised.value.details() == "the stream's answers were not read for 1 s"


async def asked_after_trips(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, server: ModelServer
) -> tuple[int, int]:
    """How many were asked before and after some round trips."""
    before = len(server.asked)
    for _ in range(20):
        await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=SECONDS)
    return before, len(server.asked)
