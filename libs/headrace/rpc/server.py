"""A gRPC server with everything that the platform's services have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from headrace.rpc import health as grpc_health
from headrace.rpc import options, reflection
from headrace.rpc.interception import Interceptor
from headrace.runtime.health import Health

logger = logging.getLogger(__name__)

DEFAULT_DEADLINE_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 5.0
STREAM_GRACE_SECONDS: Final = 1.0

_OPTIONS: Final = (
    *options.COMMON,
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
    *options.pings_every(options.KEEPALIVE_MILLISECONDS),
)


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """One service to serve: its generated `add_...Servicer_to_server`, the servicer, its full name."""

    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    full_name: str


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A running server."""

    port: int


@asynccontextmanager
async def serve(
    address: str,
    services: Sequence[ServiceBinding],
    *,
    health: Health,
    default_deadline: float = DEFAULT_DEADLINE_SECONDS,
    drain_seconds: float = DRAIN_SECONDS,
) -> AsyncIterator[BoundServer]:
    """Serve gRPC at "host:port" until the block ends; port 0 takes a free one.

    Around each method: a SERVER span that continues the caller's trace, validation by the proto's rules,
    the caller's deadline (`default_deadline` seconds for single answers where it set none), and errors as
    rich statuses. Health v1 answers `health`; reflection is on. At the end new calls are refused, those
    in progress get `drain_seconds`, and endless streams end with UNAVAILABLE after a second.

    Raises OSError where the address cannot be bound.
    """
    interceptor = Interceptor(default_deadline=default_deadline)
    server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
    full_names = [service.full_name for service in services]
    for service in services:
        service.add(service.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(grpc_health.HealthServicer(health, full_names), server)
    reflection.add_reflection(server, (*full_names, grpc_health.SERVICE_NAME))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot serve gRPC at {address}: is the port taken?") from error
    await server.start()
    logger.info("serving gRPC on port %d: %s", port, ", ".join(full_names))
    try:
        yield BoundServer(port)
    finally:
        await _stop(server, interceptor, drain_seconds)


async def _stop(server: grpc.aio.Server, interceptor: Interceptor, drain_seconds: float) -> None:
    stopping = asyncio.create_task(server.stop(drain_seconds), name="stop gRPC server")
    try:
        # Finite streams may still end by themselves; endless ones never would.
        await asyncio.wait([stopping], timeout=min(STREAM_GRACE_SECONDS, drain_seconds))
        interceptor.end_streams()
    finally:
        await stopping
