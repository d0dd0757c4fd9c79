"""Envoy and its control plane in front of servers that stand in for Triton: no broker, no database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import grpc
import tritonclient.grpc.aio as triton
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import stamp_pb2_grpc
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.process import http_get
from headrace.inference.stamp_grpc_api import StampServicer
from headrace.inference.streams import MAX_BYTES, Streams, channel_to_envoy
from headrace.inference.use_cases.ports import Route
from headrace.inference.use_cases.wake import WakeDeployment
from headrace.inference.xds.clusters import TRITON_GRPC
from headrace.inference.xds.server import ControlPlane, serve_xds
from headrace.inference.xds.wiring import Patience, TritonAddress, Wiring

SIGNATURE = "features FP32 [-1,3]"


@dataclass
class ModelServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers what it was asked, and misbehaves where it is told to.

    `asked`: the requests that reached it; `questions`: the models that somebody asked about; `rest`:
    questions about a model in REST; `posted`: its requests; `seconds_left`: each one's deadline; `refusal`:
    the status that it answers instead, and `rest_refusal` in REST; `ready`: what it says of itself; `held`:
    it answers nothing until this is set; `cancelled`: a caller gave up meanwhile; `answer_bytes`: so many are
    in each answer.
    """

    asked: list[service_pb2.ModelInferRequest] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    seconds_left: list[float | None] = field(default_factory=list)
    rest: int = 0
    posted: int = 0
    refusal: grpc.StatusCode | None = None
    rest_refusal: HTTPStatus | None = None
    ready: bool = True
    held: asyncio.Event | None = None
    answer_bytes: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _proxies: list[Proxy] = field(default_factory=list)
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> TritonAddress:
        grpc, http = self._proxies
        return TritonAddress(f"127.0.0.1:{grpc.port}", f"127.0.0.1:{http.port}")

    async def start(self) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._running.push_async_callback(server.stop, None)
        http = await asyncio.start_server(self._answer_rest, "127.0.0.1", 0)
        self._running.callback(http.close)
        self._proxies = [Proxy(port), Proxy(http.sockets[0].getsockname()[1])]
        for proxy in self._proxies:
            await proxy.open()

    async def vanish(self, *, rest: bool = True) -> None:
        """Be gone without a word, as a killed process is; without `rest` for gRPC alone."""
        for proxy in self._proxies if rest else self._proxies[:1]:
            await proxy.cut()

    async def stop(self) -> None:
        if self.held is not None:
            self.held.set()
        await self.vanish()
        await self._running.aclose()

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Any
    ) -> service_pb2.ModelInferResponse:
        self.asked.append(request)
        self.seconds_left.append(context.time_remaining())
        if self.held is not None:
            try:
                await self.held.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.refusal is not None:
            await context.abort(self.refusal, "as it was told")
        return service_pb2.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version,
            id=request.id,
            raw_output_contents=[bytes(self.answer_bytes)] if self.answer_bytes else [],
        )

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: object
    ) -> service_pb2.ModelReadyResponse:
        self.questions.append(request.name)
        return service_pb2.ModelReadyResponse(ready=True)

    async def _answer_rest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An answer to each request of a connection: that it is ready, or not; to POST so many bytes."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.rest += head.startswith(b"GET /v2/models/")
                status = HTTPStatus.OK if self.ready else HTTPStatus.BAD_REQUEST
                body = b""
                if head.startswith(b"POST "):
                    if length := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE):
                        await reader.readexactly(int(length[1]))
                    self.posted += 1
                    if self.held is not None:
                        await self.held.wait()
                    status = self.rest_refusal or status
                    body = bytes(self.answer_bytes)
                writer.write(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """One that runs until the block ends."""
    server = ModelServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@dataclass
class Front:
    """A running Envoy, its control plane, and where both are."""

    wiring: Wiring
    xds_port: int
    envoy: Envoy
    control_plane: ControlPlane

    @property
    def address(self) -> str:
        return self.wiring.listen

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.address)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    async def count(self, name: str, cluster: str = TRITON_GRPC) -> int:
        """Envoy's counter or gauge of a cluster."""
        _, body = await http_get(self.envoy.admin_port, f"/stats?filter={cluster}.{name}")
        [count] = re.findall(rf"\bcluster\.{cluster}\.{re.escape(name)}: (\d+)", body.decode())
        return int(count)

    async def until_routed(self, model: str, weights: Mapping[int, int]) -> None:
        """Wait until every Envoy says that it routes the model so."""

        async def problem() -> str:
            route = self.control_plane.routes[model]
            return self.control_plane.problem(model, replace(route, weights=weights))

        await eventually(problem, lambda found: not found)


def wiring(servers: Sequence[ModelServer], **limits: int | Patience) -> Wiring:
    """A listener of its own in front of these servers."""
    fresh = Wiring(f"127.0.0.1:{free_port()}", tuple(server.address for server in servers))
    return replace(fresh, **limits)  # type: ignore[arg-type]


@asynccontextmanager
async def front(
    folder: Path,
    wiring: Wiring,
    routes: Mapping[str, Mapping[int, int]],
    *,
    stamp: stamp_pb2_grpc.StampServiceServicer | None = None,
    stream_bytes: int = MAX_BYTES,
    **limits: int,
) -> AsyncIterator[Front]:
    """Envoy with these weights, of models that take three numbers, and with these limits of its own."""
    control_plane = ControlPlane(wiring)
    control_plane.update({name: Route(weights, SIGNATURE) for name, weights in routes.items()})
    if stamp is None:
        # Nothing is loaded nowhere.
        wake = cast("WakeDeployment", None)
        stamp = StampServicer(wake, control_plane, servers=len(wiring.triton))
    async with (
        channel_to_envoy(wiring.listen) as opened,
        serve_xds(
            "127.0.0.1:0",
            control_plane,
            streams=Streams(
                opened,
                control_plane,
                reading_seconds=wiring.patience.reading,
                max_bytes=stream_bytes,
            ).handler(),
            stamp=stamp,
        ) as xds_port,
    ):
        envoy = Envoy(folder / "envoy", folder, admin_port=free_port(), xds_port=xds_port, **limits)
        try:
            await envoy.start()
            yield Front(wiring, xds_port, envoy, control_plane)
        finally:
            await envoy.stop()


def request(model: str, **fields: Any) -> service_pb2.ModelInferRequest:
    """One row for a model."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=[1, 3])
    return service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[b"\0" * 12], **fields
    )
