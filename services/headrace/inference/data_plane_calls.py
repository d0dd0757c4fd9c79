"""Calls to the synchronous data plane, as any client makes them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc
import grpc.aio

from headrace.inference.use_cases.request_ports import CallFailed
from headrace.rpc import options

_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
# Envoy serves a connection with one of its threads.
_CONNECTIONS: Final = 2
_OPTIONS: Final = (
    *options.COMMON,
    # Else channels with the same arguments share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
    # Who asks tries again, and knows for how long.
    ("grpc.enable_retries", 0),
)


class DataPlaneClient:
    """Asks models. Requests and answers stay bytes: nothing is parsed on the way."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._calls: Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = itertools.cycle(
            [channel.unary_unary(_INFER) for channel in channels]
        )

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        """Ask with a ModelInferRequest, answered by a ModelInferResponse. Raises CallFailed."""
        metadata = (("traceparent", traceparent),) if traceparent else None
        try:
            response: bytes = await next(self._calls)(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise CallFailed(code.name, error.details() or code.name) from error
        return response


@asynccontextmanager
async def data_plane_client(address: str) -> AsyncIterator[DataPlaneClient]:
    """Connect to the data plane at host:port."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
            for _ in range(_CONNECTIONS)
        ]
        yield DataPlaneClient(channels)
