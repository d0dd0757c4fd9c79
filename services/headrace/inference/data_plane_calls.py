"""Calls to the synchronous data plane, as any client makes them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc
import grpc.aio

from headrace.inference.domain.requests import REQUEST_TOO_LARGE, Cause
from headrace.inference.use_cases.request_ports import CallFailed
from headrace.inference.xds.listener import TOO_LARGE, TOO_MANY
from headrace.rpc import options

_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
# Envoy serves a connection with one of its threads.
_CONNECTIONS: Final = 2
# One value of each: of two that are given gRPC takes the first.
_OPTIONS: Final = tuple(
    {
        **dict(options.COMMON),
        # Envoy limits what may be asked, and a model answers what it answers.
        "grpc.max_send_message_length": -1,
        "grpc.max_receive_message_length": -1,
        # Else channels with the same arguments share one connection.
        "grpc.use_local_subchannel_pool": 1,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 1000,
        "grpc.max_reconnect_backoff_ms": 2000,
        "grpc.enable_http_proxy": 0,
        # Who asks tries again, and knows for how long.
        "grpc.enable_retries": 0,
    }.items()
)


class DataPlaneClient:
    """Asks models. Requests and answers stay bytes: nothing is parsed on the way."""

    def __init__(self, channels: list[grpc.aio.Channel], client: str) -> None:
        self._metadata = (("x-forwarded-for", client),) if client else ()
        self._calls: Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = itertools.cycle(
            [channel.unary_unary(_INFER) for channel in channels]
        )

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        """Ask with a ModelInferRequest, answered by a ModelInferResponse. Raises CallFailed."""
        metadata = (*self._metadata, ("traceparent", traceparent)) if traceparent else self._metadata
        try:
            response: bytes = await next(self._calls)(request, timeout=seconds, metadata=metadata or None)
        except grpc.aio.AioRpcError as error:
            raise _failed(error.code(), error.details() or error.code().name) from error
        return response


def _failed(code: grpc.StatusCode, details: str) -> CallFailed:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # By the words that Envoy was given; whatever else is exhausted may be so for ever.
        if details == TOO_MANY:
            return CallFailed(code.name, details, Cause.BUSY)
        if details.startswith(TOO_LARGE):
            return CallFailed(code.name, details, Cause.REQUEST, REQUEST_TOO_LARGE)
    return CallFailed(code.name, details)


@asynccontextmanager
async def data_plane_client(address: str, *, client: str = "") -> AsyncIterator[DataPlaneClient]:
    """Connect to the data plane at host:port, in the name of the client with that address."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
            for _ in range(_CONNECTIONS)
        ]
        yield DataPlaneClient(channels, client)
