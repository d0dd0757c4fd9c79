"""ModelStreamInfer: each request of a stream goes through Envoy as a ModelInfer of its own.

So the weights of its own moment pick its version, and limits, retries and errors are those of every request
(docs/adr/0036). Answers come in the order of their requests, as Triton's do.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import grpc
from tritonclient.grpc import service_pb2

from headrace.client.inference_protocol import MODEL_HEADER
from headrace.errors import DeadlineExceeded
from headrace.inference.held_bytes import HeldBytes
from headrace.inference.model_index import index_entries
from headrace.inference.xds.routes import CLIENT_HEADER
from headrace.inference.xds.server import ControlPlane
from headrace.rpc.validation import read_message

Context = grpc.aio.ServicerContext[bytes, service_pb2.ModelStreamInferResponse]

_SERVICE: Final = "inference.GRPCInferenceService"

# Of one stream; what comes beyond waits with its caller.
MAX_IN_FLIGHT: Final = 64
# Of all streams together, requests that were read and are not answered yet: four of the largest that are
# allowed by default. This process is the control plane, too, and is not to be ended for its memory. One
# stream, whose model may be slow, has a part of it, so that others go on.
MAX_BYTES: Final = 256 << 20
PARTS: Final = 4
# gRPC tells how large a request is when it has been read. Where room is short streams read one after the
# other, each when the one before it has read or has nothing to read: what was sent is there within this time.
_ARRIVAL_SECONDS: Final = 0.02

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


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was read, of so many bytes, and its call."""

    id: str
    size: int
    call: grpc.aio.UnaryUnaryCall[bytes, service_pb2.ModelInferResponse]


def _named(model: str) -> list[tuple[str, str]]:
    """The header that names the model; none for what no header can hold: Envoy refuses it by the message."""
    return [(MODEL_HEADER, model)] if _NAME.fullmatch(model) else []


class _NotReadError(Exception):
    """An answer was not read in time; it is still being written."""

    def __init__(self, writing: asyncio.Future[None]) -> None:
        super().__init__()
        self.writing = writing


async def _next(requests: AsyncIterator[bytes]) -> bytes | None:
    return await anext(requests, None)


class Streams:
    """The servicer; of the protocol's methods Envoy sends it these, and all others to Triton."""

    def __init__(
        self,
        envoy: grpc.aio.Channel,
        control_plane: ControlPlane,
        *,
        reading_seconds: float,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`reading_seconds`: a client may leave an answer unread so long."""
        # A request goes on as the bytes that it came in.
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, service_pb2.ModelInferResponse] = (
            envoy.unary_unary(
                f"/{_SERVICE}/ModelInfer", response_deserializer=service_pb2.ModelInferResponse.FromString
            )
        )
        self._control_plane = control_plane
        self._reading_seconds = reading_seconds
        self._held = HeldBytes(max_bytes)
        self._door = asyncio.Lock()

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
                "ModelReady": grpc.unary_unary_rpc_method_handler(
                    self.model_ready,
                    service_pb2.ModelReadyRequest.FromString,
                    service_pb2.ModelReadyResponse.SerializeToString,
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

    async def model_ready(
        self, _request: service_pb2.ModelReadyRequest, _context: object
    ) -> service_pb2.ModelReadyResponse:
        """Of a model that is loaded when it is asked, which Envoy asks here: it may be."""
        return service_pb2.ModelReadyResponse(ready=True)

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer each request; an error is told in its place, or ends the stream for who wants that.

        Raises InvalidArgument, after the answers before it, where bytes are no request, and
        DeadlineExceeded/NOT_READ where the client does not read its answers.
        """
        try:
            await self._answer_each(requests, context)
        except _NotReadError as error:
            # Its status comes behind the answer, whenever that is read. All else has been let go.
            await error.writing
            raise DeadlineExceeded(
                "NOT_READ", f"the stream's answers were not read for {self._reading_seconds:g} s"
            ) from None

    async def _answer_each(self, requests: AsyncIterator[bytes], context: Context) -> None:
        # Before the first request: Envoy gives a request without any answer so long, and no longer.
        await context.send_initial_metadata(())
        given = dict(context.invocation_metadata() or ())
        metadata = [(theirs, given[ours]) for ours, theirs in _PASSED_ON.items() if ours in given]
        room = asyncio.Semaphore(MAX_IN_FLIGHT)
        own = HeldBytes(self._held.most // PARTS)
        asked: asyncio.Queue[_Asked | None] = asyncio.Queue()

        async def ask() -> None:
            try:
                while True:
                    await room.acquire()
                    await own.room()
                    data = await self._read(requests, own)
                    if data is None:
                        return
                    request = read_message(
                        service_pb2.ModelInferRequest.FromString, data, "ModelInferRequest"
                    )
                    call = self._infer(
                        data,
                        timeout=context.time_remaining(),
                        metadata=[*metadata, *_named(request.model_name)],
                    )
                    asked.put_nowait(_Asked(request.id, len(data), call))
            finally:
                asked.put_nowait(None)

        asking = asyncio.create_task(ask())
        try:
            while (next_asked := await asked.get()) is not None:
                answer = service_pb2.ModelStreamInferResponse()
                try:
                    answer.infer_response.CopyFrom(await next_asked.call)
                except grpc.aio.AioRpcError as error:
                    if given.get(STATUS_HEADER) == "true":
                        await context.abort(error.code(), error.details() or "")
                    answer.error_message = error.details()
                    answer.infer_response.id = next_asked.id
                # Every request has one answer, which is its last.
                answer.infer_response.parameters["triton_final_response"].bool_param = True
                await self._write(answer, context)
                for holder in (own, self._held):
                    holder.give(next_asked.size)
                room.release()
            await asking
        finally:
            asking.cancel()
            self._held.give(own.held)
            # It fails where the caller gave up.
            await asyncio.gather(asking, return_exceptions=True)
            while not asked.empty():
                if (left := asked.get_nowait()) is not None:
                    left.call.cancel()

    async def _read(self, requests: AsyncIterator[bytes], own: HeldBytes) -> bytes | None:
        """A stream's next request, when there is room for it, held; None where the stream has ended."""
        if self._held.has_room and not self._door.locked():
            data = await anext(requests, None)
        else:
            async with self._door:
                await self._held.room()
                reading = asyncio.create_task(_next(requests))
                try:
                    await asyncio.wait([reading], timeout=_ARRIVAL_SECONDS)
                except asyncio.CancelledError:
                    reading.cancel()
                    raise
            data = await reading
        if data is not None:
            for holder in (own, self._held):
                holder.take(len(data))
        return data

    async def _write(self, answer: service_pb2.ModelStreamInferResponse, context: Context) -> None:
        writing = asyncio.ensure_future(context.write(answer))
        try:
            await asyncio.wait([writing], timeout=self._reading_seconds)
        except asyncio.CancelledError:
            writing.cancel()
            raise
        if not writing.done():
            raise _NotReadError(writing)
        await writing
