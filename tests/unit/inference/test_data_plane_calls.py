"""What the data plane's refusals mean to whoever may ask again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.data_plane_calls import data_plane_client
from headrace.inference.domain.requests import Cause
from headrace.inference.use_cases.request_ports import CallFailed
from headrace.inference.xds.listener import TOO_LARGE, TOO_MANY
from headrace.rpc import options

LARGE = bytes(options.MAX_MESSAGE_BYTES + 1)
REQUEST = service_pb2.ModelInferRequest(model_name="live").SerializeToString()


class Refusing(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._refusal = code, details

    async def ModelInfer(self, request: service_pb2.ModelInferRequest, context: Any) -> None:
        await context.abort(*self._refusal)


class Echoing(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: object
    ) -> service_pb2.ModelInferResponse:
        return service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)


@pytest.fixture
async def unlimited() -> AsyncIterator[str]:
    """A data plane that takes and answers any size."""
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=sizes)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echoing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def refusing(code: grpc.StatusCode, details: str) -> AsyncIterator[str]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Refusing(code, details), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "details", "cause"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "wrong shape", Cause.REQUEST),
        (grpc.StatusCode.NOT_FOUND, "no model live", Cause.REQUEST),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY, Cause.BUSY),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, f"{TOO_LARGE} 9 bytes", Cause.REQUEST),
        # Nobody knows whether waiting helps.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more of it", Cause.OTHER),
    ],
)
async def test_a_refusal_is_told_by_its_code_and_words(
    code: grpc.StatusCode, details: str, cause: Cause
) -> None:
    async with refusing(code, details) as address, data_plane_client(address) as client:
        with pytest.raises(CallFailed) as raised:
            await client.infer(REQUEST, seconds=10, traceparent="")
    assert (raised.value.code, raised.value.message, raised.value.cause) == (code.name, details, cause)


async def test_nobody_there_is_no_room() -> None:
    async with data_plane_client("127.0.0.1:1") as client:
        with pytest.raises(CallFailed) as raised:
            await client.infer(REQUEST, seconds=10, traceparent="")
    assert raised.value.code == "UNAVAILABLE"


async def test_a_client_limits_neither_requests_nor_answers(unlimited: str) -> None:
    async with data_plane_client(unlimited) as client:
        request = service_pb2.ModelInferRequest(model_name="live", raw_input_contents=[LARGE])
        answer = await client.infer(request.SerializeToString(), seconds=60, traceparent="")
    (raw,) = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents
    assert len(raw) == len(LARGE)
