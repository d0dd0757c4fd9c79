"""Clients that are slow, lie, vanish or are too many: clean answers, and the others get theirs."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
from tests.support.frames import call_in_frames
from tests.support.front import Front, ModelServer, front, model_server, request, wiring
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.xds.wiring import Patience

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "m"
INFER = f"/v2/models/{MODEL}/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Far more than anything takes.
SECONDS = 60
LIMIT = 1 << 20
TOO_LATE = "the request did not arrive in time; send it faster"

CONNECTIONS = 10_000
# Of the files that a process may open, so many are for other things than connections.
OTHER_FILES = 2_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """An Envoy that waits for nobody for long."""
    patience = Patience(headers=1, request=2, ping=1)
    wired = wiring([server], max_request_bytes=LIMIT, patience=patience)
    async with front(tmp_path_factory.mktemp("impatient"), wired, {MODEL: {3: 100}}) as made:
        yield made


async def connect(made: Front) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = made.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def said(made: Front, sent: bytes) -> str:
    """All that Envoy answers to these bytes before it closes the connection, which the client leaves open."""
    reader, writer = await connect(made)
    try:
        writer.write(sent)
        async with asyncio.timeout(SECONDS):
            return (await reader.read()).decode()
    finally:
        writer.close()


def post(headers: str, body: bytes = b"") -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nhost: envoy\r\n{headers}\r\n\r\n".encode() + body


async def assert_serves(made: Front) -> None:
    async with made.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        assert (await stub.ModelInfer(request(MODEL), timeout=SECONDS)).model_version == "3"


async def test_headers_that_do_not_end_are_given_up(impatient: Front) -> None:
    answer = await said(impatient, b"POST / HTTP/1.1\r\nhost: envoy\r\nx-slow: ")
    assert answer.startswith("HTTP/1.1 408 ")
    await assert_serves(impatient)


async def test_a_body_shorter_than_its_content_length_is_told_so(impatient: Front) -> None:
    answer = await said(impatient, post("content-length: 1000", b'{"inputs": []'))
    assert answer.startswith("HTTP/1.1 408 ")
    assert answer.endswith(f'{{"error":"{TOO_LATE}"}}\n')
    await assert_serves(impatient)


async def test_a_body_longer_than_its_content_length_is_no_second_request(impatient: Front) -> None:
    answer = await said(impatient, post("content-length: 2", b'{}{"inputs": []}\r\n\r\n'))
    first, *others = answer.split("HTTP/1.1 ")[1:]
    assert first.startswith("200 ")
    assert [other[:3] for other in others] == ["400"]
    await assert_serves(impatient)


@pytest.mark.parametrize(
    "headers",
    [
        "content-length: -1",
        "content-length: 1e3",
        "content-length: 18446744073709551616",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, identity",
    ],
)
async def test_a_length_that_cannot_be_is_refused(impatient: Front, headers: str) -> None:
    answer = await said(impatient, post(headers, b"{}"))
    assert answer.startswith(("HTTP/1.1 400 ", "HTTP/1.1 501 "))
    await assert_serves(impatient)


async def test_a_content_length_above_the_limit_is_told_so(impatient: Front) -> None:
    answer = await said(impatient, post(f"content-length: {1 << 40}", b"0" * (LIMIT + 1)))
    assert answer.startswith("HTTP/1.1 413 ")
    await assert_serves(impatient)


async def test_a_call_that_does_not_end_is_told_so_and_those_that_wait_go_on(
    impatient: Front, server: ModelServer
) -> None:
    async with impatient.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        stream = stub.ModelStreamInfer(timeout=SECONDS)
        await stream.initial_metadata()
        server.held = asyncio.Event()
        asked = len(server.asked)
        held = stub.ModelInfer(request(MODEL), timeout=SECONDS)
        await eventually(lambda: _asked(server), lambda count: count > asked)

        # They began before this one, which is ended for the time that it takes.
        unending = opened.stream_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        )(timeout=SECONDS)
        await unending.write(request(MODEL))
        assert await unending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await unending.details() == TOO_LATE

        server.held.set()
        assert (await held).model_version == "3"
        await stream.write(request(MODEL))
        answer = await stream.read()
        assert answer.infer_response.model_version == "3"
        await stream.done_writing()
    server.held = None


@pytest_asyncio.fixture(loop_scope="module")
async def deaf(tmp_path: Path) -> AsyncIterator[tuple[Front, ModelServer]]:
    """An Envoy that does not wait for long until an answer is read, and a server."""
    async with model_server() as server:
        wired = wiring([server], max_request_bytes=LIMIT, patience=Patience(reading=1))
        async with front(tmp_path, wired, {MODEL: {3: 100}}) as made:
            yield made, server


async def test_a_call_whose_answer_is_not_read_is_ended_and_others_are_answered(
    deaf: tuple[Front, ModelServer],
) -> None:
    made, server = deaf
    # Envoy has it whole, and the client lets it send 64 KiB.
    server.answer_bytes = LIMIT // 2
    message = request(MODEL).SerializeToString()
    sent = [b"\0" + len(message).to_bytes(4, "big") + message]
    unread = asyncio.create_task(call_in_frames(made.address, METHOD, sent, {}))
    await eventually(lambda: _asked(server), bool)
    await assert_serves(made)
    with pytest.raises(ConnectionError, match="the stream was reset"):
        await unread
    await assert_serves(made)


async def test_a_frozen_client_of_http_1_is_ended_and_others_are_answered(
    deaf: tuple[Front, ModelServer],
) -> None:
    made, server = deaf
    # More than Envoy and two kernels take for it.
    server.answer_bytes = 32 << 20
    with socket.socket() as frozen:
        frozen.setblocking(False)
        host, _, port = made.address.rpartition(":")
        await asyncio.get_running_loop().sock_connect(frozen, (host, int(port)))
        await asyncio.get_running_loop().sock_sendall(frozen, post("content-length: 2", b"{}"))
        await eventually(lambda: _connections(made), lambda active: active == 1)
        await eventually(lambda: _connections(made), lambda active: active == 0)
    server.answer_bytes = 0
    await assert_serves(made)


async def test_who_vanishes_takes_its_requests_along(impatient: Front, server: ModelServer) -> None:
    proxy = Proxy(int(impatient.address.rpartition(":")[2]))
    await proxy.open()
    server.held, server.cancelled = asyncio.Event(), asyncio.Event()
    asked = len(server.asked)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as opened:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer(request(MODEL), timeout=SECONDS)
        await eventually(lambda: _asked(server), lambda count: count > asked)
        proxy.freeze()
        async with asyncio.timeout(SECONDS):
            await server.cancelled.wait()
        call.cancel()
    server.held = None
    await proxy.cut()
    await assert_serves(impatient)


async def _asked(server: ModelServer) -> int:
    return len(server.asked)


def may_open(connections: int) -> int:
    """So many connections, or what this machine lets a process have; from now on they may be opened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return connections if hard == resource.RLIM_INFINITY else min(connections, hard - OTHER_FILES)


async def test_ten_thousand_connections_take_nothing_from_who_asks(
    server: ModelServer, tmp_path: Path
) -> None:
    count = may_open(CONNECTIONS)
    spare = 100
    wired = wiring([server], patience=Patience(idle=SECONDS * 60))
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(
            front(tmp_path, wired, {MODEL: {3: 100}}, max_connections=count + spare)
        )
        opened = await stack.enter_async_context(made.channel())
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)

        async def one() -> asyncio.StreamReader:
            reader, writer = await connect(made)
            stack.callback(writer.close)
            return reader

        for _ in range(count // spare):
            await asyncio.gather(*(one() for _ in range(spare)))
            assert (await stub.ModelInfer(request(MODEL), timeout=SECONDS)).model_version == "3"
        await eventually(lambda: _connections(made), lambda active: active >= count)
        await assert_serves(made)

        # Beyond the limit they are closed at once, and those within it are served.
        beyond = await asyncio.gather(*(one() for _ in range(2 * spare)))
        async with asyncio.timeout(SECONDS):
            closed = [asyncio.create_task(_closed(reader)) for reader in beyond]
            await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED)
        assert (await stub.ModelInfer(request(MODEL), timeout=SECONDS)).model_version == "3"
        for task in closed:
            task.cancel()


async def _closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        assert await reader.read() == b""


async def _connections(made: Front) -> int:
    return await made.envoy.count("http.inference.downstream_cx_active")


async def test_more_than_fits_into_memory_is_refused_and_served_again_when_it_is_gone(
    server: ModelServer, tmp_path: Path
) -> None:
    size, heap = 8 << 20, 96 << 20
    wired = wiring([server], max_request_bytes=size)
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(front(tmp_path, wired, {MODEL: {3: 100}}, max_heap_bytes=heap))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{made.address}"))
        pid = made.envoy.pid

        async def status() -> int:
            return (await client.get("/v2/health/live")).status_code

        assert await status() == 200
        writers = []

        async def one_more_that_does_not_end() -> int:
            _, writer = await connect(made)
            writers.append(writer)
            writer.write(post(f"content-length: {size}", b"0" * (size - 1)))
            return await status()

        assert await eventually(one_more_that_does_not_end, lambda found: found != 200) == 503
        async with made.channel() as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ModelInfer(request(MODEL), timeout=SECONDS)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        for writer in writers:
            writer.transport.abort()
        await eventually(status, lambda found: found == 200)
        assert made.envoy.pid == pid
