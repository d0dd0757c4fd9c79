"""Server reflection, v1 and v1alpha: grpcurl and its like need no proto files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

# grpcio-reflection has v1alpha only. v1 is the same messages under another name.
V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final[str] = reflection.SERVICE_NAME


def add_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Describe the named services, and reflection itself, under both versions."""
    servicer = reflection.aio.ReflectionServicer((*service_names, V1, V1ALPHA))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (V1, V1ALPHA)
        )
    )
