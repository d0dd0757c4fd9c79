"""ModelStreamInfer: each request of a stream goes through Envoy as a ModelInfer of its own.

So the weights of its own moment pick its version, and limits, retries and errors are those of every request
(docs/adr/0036). Answers come in the order of their requests, as Triton's do.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final

import grpc
from tritonclient.grpc import service_pb2

from headrace.client.inference_protocol import MODEL_HEADER
from headrace.inference.model_index import index_entries
from headrace.inference.plain_errors import read
from headrace.inference.xds.routes import CLIENT_HEADER
from headrace.inference.xds.server import ControlPlane

Context = grpc.aio.ServicerContext[bytes, service_pb2.ModelStreamInferResponse]

_SERVICE: Final = "inference.GRPCInferenceService"

# Of one stream; what comes beyond waits with its caller.
MAX_IN_FLIGHT: Final = 64

# Triton's: who sends it as "true" wants the first error to end the stream with its status.
STATUS_HEADER: Final = "triton_grpc_error"
_PASSED_ON: Final = {
    "traceparent": "traceparent",
    "tracestate": "tracestate",
    CLIENT_HEADER: "x-forwarded-for",
}

_NAME: Final = re.compile(r"[\w.-]+", re.ASCII)

_OPTIONS: Final = (
    # Envoy limits what may be asked, and Triton answers what it answers.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


def channel_to_envoy(target: str) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """A channel to Envoy's listener at host:port."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


# A request's id and its call.
_Asked = tuple[str, grpc.aio.UnaryUnaryCall[bytes, service_pb2.ModelInferResponse]]


def _named(model: str) -> list[tuple[str, str]]:
    """The header that names the model; none for what no header can hold: Envoy refuses it by the message."""
    return [(MODEL_HEADER, model)] if _NAME.fullmatch(model) else []


class Streams:
    """The servicer; of the protocol's methods Envoy sends it these, and all others to Triton."""

    def __init__(self, envoy: grpc.aio.Channel, control_plane: ControlPlane) -> None:
        # A request goes on as the bytes that it came in.
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, service_pb2.ModelInferResponse] = (
            envoy.unary_unary(
                f"/{_SERVICE}/ModelInfer", response_deserializer=service_pb2.ModelInferResponse.FromString
            )
        )
        self._control_plane = control_plane

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server takes."""
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "RepositoryIndex": grpc.unary_unary_rpc_method_handler(
                    self.repository_index,
                    service_pb2.RepositoryIndexRequest.FromString,
                    service_pb2.RepositoryIndexResponse.SerializeToString,
                ),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                    self.model_stream_infer,
                    # Read here, for an error of one request must not overtake the answers before it.
                    None,
                    service_pb2.ModelStreamInferResponse.SerializeToString,
                ),
            },
        )

    async def repository_index(
        self, request: service_pb2.RepositoryIndexRequest, context: object
    ) -> service_pb2.RepositoryIndexResponse:
        """The models that may be asked, whatever server has them."""
        entries = index_entries(self._control_plane.routes, ready=request.ready)
        return service_pb2.RepositoryIndexResponse(models=[entry.document() for entry in entries])

    async def model_stream_infer(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        """Answer each request; an error is told in its place, or ends the stream for who wants that.

        Raises InvalidArgument, after the answers before it, where bytes are no request.
        """
        # Before the first request: Envoy gives a request without any answer so long, and no longer.
        await context.send_initial_metadata(())
        given = dict(context.invocation_metadata() or ())
        metadata = [(theirs, given[ours]) for ours, theirs in _PASSED_ON.items() if ours in given]
        room = asyncio.Semaphore(MAX_IN_FLIGHT)
        asked: asyncio.Queue[_Asked | None] = asyncio.Queue()

        async def ask() -> None:
            try:
                async for data in requests:
                    request = read(service_pb2.ModelInferRequest.FromString, data, "ModelInferRequest")
                    await room.acquire()
                    call = self._infer(
                        data,
                        timeout=context.time_remaining(),
                        metadata=[*metadata, *_named(request.model_name)],
                    )
                    asked.put_nowait((request.id, call))
            finally:
                asked.put_nowait(None)

        asking = asyncio.create_task(ask())
        try:
            while (next_asked := await asked.get()) is not None:
                request_id, call = next_asked
                answer = service_pb2.ModelStreamInferResponse()
                try:
                    answer.infer_response.CopyFrom(await call)
                except grpc.aio.AioRpcError as error:
                    if given.get(STATUS_HEADER) == "true":
                        await context.abort(error.code(), error.details() or "")
                    answer.error_message = error.details()
                    answer.infer_response.id = request_id
                # Every request has one answer, which is its last.
                answer.infer_response.parameters["triton_final_response"].bool_param = True
                yield answer
                room.release()
            await asking
        finally:
            asking.cancel()
            # It fails where the caller gave up.
            await asyncio.gather(asking, return_exceptions=True)
            while not asked.empty():
                if (left := asked.get_nowait()) is not None:
                    left[1].cancel()
