"""Bytes that are no request, by gRPC and REST: the answer is a clean error, and Triton lives."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.component.inference.conftest import ask
from tests.support.front import Front, front, request
from tests.support.hostile_models import PlainTriton, plain_triton, put_hostile_models
from tritonclient.grpc import service_pb2

from headrace.client.inference_protocol import MODEL_HEADER
from headrace.embedded.parts import free_port
from headrace.inference.xds.wiring import Wiring

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "well"
LIMIT = 8 << 20
EXAMPLES = 50
# Of gRPC: told what is wrong, or nothing was.
CLEAN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}

ROW = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
DOCUMENT = json.dumps({"id": "mine", "inputs": [ROW], "outputs": [{"name": "label"}]}).encode()
MESSAGE = request(MODEL, id="mine").SerializeToString()
NAMED = ((MODEL_HEADER, MODEL),)
# A text that is longer than what there is of it.
GARBAGE = b"\x0a\xff\xff"
DEEP = 1_000_000


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """These bytes with some of them replaced by others, and what has nothing to do with them."""
    edit = st.tuples(st.integers(0, len(whole)), st.integers(0, 8), st.binary(max_size=8))

    def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
        found = whole
        for at, gone, new in edits:
            found = found[:at] + new + found[at + gone :]
        return found

    return st.lists(edit, min_size=1, max_size=4).map(edited) | st.binary(max_size=200)


def with_row(**fields: object) -> bytes:
    return json.dumps({"inputs": [{**ROW, **fields}]}).encode()


@dataclass
class Plane:
    triton: PlainTriton
    front: Front
    opened: grpc.aio.Channel
    client: httpx.AsyncClient

    async def serves(self, pid: int | None) -> None:
        """Assert that the model is answered, by the process that was there before."""
        async with self.front.client() as client:
            assert (await ask(client, MODEL)).as_numpy("label").tolist() == [[1]]
        assert self.triton.part.pid == pid


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    folder = tmp_path_factory.mktemp("malformed")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(plain_triton(folder))
        await put_hostile_models(server, [MODEL])
        wired = Wiring(f"127.0.0.1:{free_port()}", (server.address,), max_request_bytes=LIMIT)
        made = await stack.enter_async_context(front(folder, wired, {MODEL: {1: 100}}))
        opened = await stack.enter_async_context(made.channel())
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{made.address}", timeout=60)
        )
        yield Plane(server, made, opened, client)


@settings(max_examples=EXAMPLES)
@given(data=damaged(MESSAGE))
async def test_bytes_instead_of_a_message_are_answered_cleanly(plane: Plane, data: bytes) -> None:
    pid = plane.triton.part.pid
    for method, metadata in (
        ("ModelInfer", ()),
        ("ModelInfer", NAMED),
        ("ModelMetadata", ()),
        ("RepositoryIndex", ()),
    ):
        method_of = plane.opened.unary_unary(f"/inference.GRPCInferenceService/{method}")
        call = method_of(data, timeout=60, metadata=metadata)
        assert await call.code() in CLEAN, await call.details()
    stream = plane.opened.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    streamed = stream(_one(data), timeout=60)
    while await _read(streamed):
        pass
    assert await streamed.code() in CLEAN, await streamed.details()
    await plane.serves(pid)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _read(stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> bool:
    """Whether there was another answer; a stream's status comes after them."""
    try:
        return await stream.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        return False


async def test_bytes_that_are_no_request_of_a_method_are_told_so(plane: Plane) -> None:
    index = plane.opened.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")(GARBAGE, timeout=60)
    assert await index.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await index.details() == "the request is not a message of this method"
    # Envoy alone comes here; what it is answered becomes its caller's answer.
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.front.xds_port}") as opened:
        for method in ("Wake", "ListModels"):
            call = opened.unary_unary(f"/headrace.api.inference.v1.StampService/{method}")(GARBAGE)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_in_a_stream_end_it_after_the_answers_before_them(plane: Plane) -> None:
    stream = plane.opened.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )(timeout=60)
    for data in (MESSAGE, MESSAGE, GARBAGE):
        await stream.write(data)
    for _ in range(2):
        answer = await stream.read()
        assert (answer.error_message, answer.infer_response.model_version) == ("", "1")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "the request is not a ModelInferRequest"


@settings(max_examples=EXAMPLES)
@given(data=damaged(DOCUMENT))
@example(data=b"")
@example(data=b"null")
@example(data=b'{"inputs": null}')
@example(data=b"[" * 10_000)
@example(data=b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}")
@example(data=b'{"x": "]' + b'\\"' * DEEP + b'", "y":' + b'{"a":' * DEEP)
@example(data=with_row(shape=[-1, 3]))
@example(data=with_row(shape=[1 << 62, 3]))
@example(data=with_row(shape=[1 << 40, 1 << 40]))
@example(data=with_row(shape=[1] * 1000))
@example(data=with_row(data=[[[[1]], 1], 1]))
@example(data=with_row(data=["a", None, True]))
@example(data=with_row(datatype="BYTES"))
@example(data=with_row(parameters={"binary_data_size": 12}))
@example(data=with_row(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 12}))
@example(data=b'{"id": {"a": 1}, "inputs": []}')
@example(data=DOCUMENT.replace(b"{", b'{"id": "mi\x80ne", ', 1))
@example(data=DOCUMENT.replace(b"{", b'{"parameters": {"subject": "\x80"}, ', 1))
@example(data=with_row(name="features\udc80").replace(rb"\udc80", b"\x80"))
@example(data=with_row(name="features\u20ac").replace(rb"\u20ac", "\u20ac".encode()))
async def test_bytes_instead_of_a_document_are_answered_cleanly(plane: Plane, data: bytes) -> None:
    pid = plane.triton.part.pid
    answer = await plane.client.post(f"/v2/models/{MODEL}/infer", content=data)
    assert answer.status_code in {200, 400}, answer.text
    assert answer.status_code == 200 or answer.json()["error"]
    await plane.serves(pid)


@pytest.mark.parametrize("path", ["/v2/repository/index", f"/v2/models/{MODEL}/ready", "/v2/health/live"])
async def test_no_path_takes_what_would_end_triton_or_fill_it(plane: Plane, path: str) -> None:
    pid = plane.triton.part.pid
    deep = await plane.client.post(path, content=b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}")
    assert deep.status_code == 400
    assert deep.json()["error"].startswith("the request's JSON is nested more than 64 deep")
    large = await plane.client.post(path, content=b" " * (LIMIT + 1))
    assert large.status_code == 413
    await plane.serves(pid)


async def test_a_message_too_large_for_any_method_is_refused(plane: Plane) -> None:
    method = plane.opened.unary_unary("/inference.GRPCInferenceService/ServerLive")
    call = method(bytes(LIMIT), timeout=60)
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_larger_unpacked_than_allowed_is_refused(plane: Plane) -> None:
    pid = plane.triton.part.pid
    path = f"/v2/models/{MODEL}/infer"
    packed = {"content-encoding": "gzip"}
    assert (await plane.client.post(path, content=gzip.compress(DOCUMENT), headers=packed)).status_code == 200
    # A thousandth of what it unpacks to.
    bomb = gzip.compress(b'{"inputs": [' + b" " * 2 * LIMIT)
    assert (await plane.client.post(path, content=bomb, headers=packed)).status_code in {400, 413}
    other = await plane.client.post(path, content=DOCUMENT, headers={"content-encoding": "br"})
    assert other.status_code == 415
    assert other.json()["error"].startswith("of compressed requests only gzip is supported")
    await plane.serves(pid)


@pytest.mark.parametrize("length", ["-1", "0", "5", "0x10", "1000000000", str(1 << 63), "many", "5,5"])
async def test_a_header_that_lies_about_where_tensors_begin_is_answered_cleanly(
    plane: Plane, length: str
) -> None:
    pid = plane.triton.part.pid
    answer = await plane.client.post(
        f"/v2/models/{MODEL}/infer",
        content=with_row(parameters={"binary_data_size": 12}) + bytes(12),
        headers={"inference-header-content-length": length},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]
    await plane.serves(pid)
