"""Requests whose model a header names: stamped while they arrive, in whatever pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import grpc
import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.frames import call_in_frames
from tests.support.front import Front, ModelServer, front, model_server, request, wiring
from tritonclient.grpc import service_pb2

from headrace.client.inference_protocol import MODEL_HEADER
from headrace.inference.domain.trials import Trial

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL = "m"
OTHER = "other"
LIMIT = 1 << 20
EXAMPLES = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    wired = wiring([server], max_request_bytes=LIMIT)
    routes = {MODEL: {3: 100, 4: 0}, OTHER: {1: 100}}
    async with front(tmp_path_factory.mktemp("named"), wired, routes) as started:
        yield started


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


async def call(
    made: Front, data: bytes, *cuts: int, model: str = MODEL
) -> tuple[grpc.StatusCode, str, service_pb2.ModelInferResponse]:
    """Send these bytes, cut at these places."""
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts), *range(0, len(data), 1 << 14)})
    frames = [data[first:end] for first, end in pairwise(places)]
    if cuts and not data:
        frames = [b""]
    code, words, answer = await call_in_frames(made.address, INFER, frames, {MODEL_HEADER: model})
    return code, words, service_pb2.ModelInferResponse.FromString(answer)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    size=st.integers(0, 40_000),
    version=st.sampled_from(["", "3"]),
    request_id=st.sampled_from(["", "mine", "x" * 256]),
    cuts=st.lists(st.integers(1, 2_000), max_size=6),
)
@example(size=12, version="", request_id="", cuts=[1, 2, 3, 4, 5, 6, 7, 8])
@example(size=60_000, version="", request_id="", cuts=[])
async def test_whatever_the_pieces_the_server_gets_the_request_with_its_version_and_id(
    made: Front, server: ModelServer, size: int, version: str, request_id: str, cuts: list[int]
) -> None:
    asked = request(MODEL, model_version=version, id=request_id)
    asked.raw_input_contents[0] = bytes(number % 251 for number in range(size))
    code, words, answer = await call(made, framed(asked.SerializeToString()), *cuts)
    assert code is grpc.StatusCode.OK, words
    got = server.asked[-1]
    assert (answer.model_version, answer.id) == ("3", got.id)
    assert got.id == request_id or (not request_id and len(got.id) > 8)
    asked.model_version, asked.id = "3", got.id
    assert got == asked


async def test_what_a_request_says_again_behind_its_tensors_is_not_what_the_server_reads(made: Front) -> None:
    again = service_pb2.ModelInferRequest(model_name=OTHER, model_version="4", id="other")
    first = request(MODEL, model_version="3", id="mine").SerializeToString()
    code, words, answer = await call(made, framed(first + again.SerializeToString()))
    assert code is grpc.StatusCode.OK, words
    assert (answer.model_name, answer.model_version, answer.id) == (MODEL, "3", "mine")


WHOLE = request(MODEL, id="mine").SerializeToString()
LARGE = request(MODEL, parameters={"x": service_pb2.InferParameter(string_param="x" * 5_000)})
ONE_MESSAGE = "the request is not one whole message"


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "INVALID_ARGUMENT", "the request is "),
        (b"\0\0", "INVALID_ARGUMENT", ONE_MESSAGE),
        (framed(b""), "INVALID_ARGUMENT", "model_name is missing"),
        (framed(b"\xff" * 100), "INVALID_ARGUMENT", "the request is not a ModelInferRequest"),
        (b"\1" + framed(WHOLE)[1:], "UNIMPLEMENTED", "compressed requests are not supported"),
        (framed(WHOLE)[:-1], "INVALID_ARGUMENT", ONE_MESSAGE),
        (framed(WHOLE) + b"x", "INVALID_ARGUMENT", ONE_MESSAGE),
        (framed(LARGE.SerializeToString())[:-1], "INVALID_ARGUMENT", ONE_MESSAGE),
        (framed(LARGE.SerializeToString()) + framed(WHOLE), "INVALID_ARGUMENT", ONE_MESSAGE),
        (
            b"\0" + LIMIT.to_bytes(4, "big") + bytes(3_000),
            "RESOURCE_EXHAUSTED",
            f"the request is larger than {LIMIT} bytes",
        ),
        (
            framed(request(OTHER).SerializeToString()),
            "INVALID_ARGUMENT",
            "the header headrace-model names another model than the request",
        ),
        (
            framed(request(MODEL, id="x" * 257).SerializeToString()),
            "INVALID_ARGUMENT",
            "the id is longer than 256 bytes",
        ),
        (
            framed(request(MODEL, id="x" * 5_000).SerializeToString()),
            "INVALID_ARGUMENT",
            "the id is longer than 256 bytes",
        ),
        (
            framed(request(MODEL, model_version="9").SerializeToString()),
            "NOT_FOUND",
            "model m has no live version 9; live: 3, 4",
        ),
    ],
)
async def test_what_is_wrong_with_a_request_is_told_as_without_the_header(
    made: Front, server: ModelServer, data: bytes, code: str, words: str
) -> None:
    asked = len(server.asked)
    for cuts in ((), (3, 300, 2_000)):
        told, said, _ = await call(made, data, *cuts)
        assert (told.name, said.startswith(words)) == (code, True), said
    assert len(server.asked) == asked


@pytest.mark.parametrize("model", ["none", "no name", "x" * 200])
async def test_a_header_that_names_no_model_is_not_found(made: Front, model: str) -> None:
    code, words, _ = await call(made, framed(WHOLE), model=model)
    assert (code, "deployed" in words) == (grpc.StatusCode.NOT_FOUND, True)


async def test_while_a_version_is_shadowed_requests_are_read_whole(made: Front, server: ModelServer) -> None:
    routes = made.control_plane.routes
    shadowed = replace(routes[MODEL], trial=Trial(version=4, mirrored=100))
    made.control_plane.update({**routes, MODEL: shadowed})
    await made.until_routed(MODEL, routes[MODEL].weights)
    try:
        code, words, answer = await call(made, framed(WHOLE), 3)
        assert (code, answer.model_version) == (grpc.StatusCode.OK, "3"), words
        code, words, _ = await call(made, framed(WHOLE), model=OTHER)
        assert (code, words[:10]) == (grpc.StatusCode.INVALID_ARGUMENT, "the header")
    finally:
        made.control_plane.update(routes)
        await made.until_routed(MODEL, routes[MODEL].weights)
    shadows = [asked for asked in server.asked if asked.model_version == "4"]
    assert [asked.id for asked in shadows] == ["mine"]
