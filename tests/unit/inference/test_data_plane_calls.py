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
from headrace.inference.use_cases.request_ports import CallFailed

REQUEST = service_pb2.ModelInferRequest(model_name="live").SerializeToString()


class Refusing(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._refusal = code, details

    async def ModelInfer(self, request: service_pb2.ModelInferRequest, context: Any) -> None:
        await context.abort(*self._refusal)


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
    ("code", "details", "meant"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "wrong shape", "INVALID_ARGUMENT"),
        (grpc.StatusCode.NOT_FOUND, "no model live", "NOT_FOUND"),
        # Of a Triton that has just started: the model is loaded again.
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'live' is not found", "UNAVAILABLE"),
    ],
)
async def test_a_refusal_is_told_by_its_code(code: grpc.StatusCode, details: str, meant: str) -> None:
    async with refusing(code, details) as address, data_plane_client(address) as client:
        with pytest.raises(CallFailed) as raised:
            await client.infer(REQUEST, seconds=10, traceparent="")
    assert (raised.value.code, raised.value.message) == (meant, details)


async def test_nobody_there_is_no_room() -> None:
    async with data_plane_client("127.0.0.1:1") as client:
        with pytest.raises(CallFailed) as raised:
            await client.infer(REQUEST, seconds=10, traceparent="")
    assert raised.value.code == "UNAVAILABLE"
