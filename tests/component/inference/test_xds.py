"""Envoy and its control plane: who comes first, who goes away, and what is refused."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import pytest
from envoy.config.route.v3 import route_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from tests.support.front import SIGNATURE, ModelServer, front, model_server, request, wiring
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2_grpc

from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.process import http_post
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds import server as xds_server
from headrace.inference.xds.resources import shard_resource
from headrace.inference.xds.routes import shard_of
from headrace.inference.xds.server import ControlPlane, serve_xds

MODEL = "m"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as started:
        yield started


def weights(*versions: int) -> dict[str, Route]:
    return {MODEL: Route(dict.fromkeys(versions, 100 // len(versions)), SIGNATURE)}


async def version_of(address: str, model: str = MODEL) -> str:
    async with grpc.aio.insecure_channel(address) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        answer = await stub.ModelInfer(request(model), timeout=10, wait_for_ready=True)
        return str(answer.model_version)


@dataclass
class Calls:
    """What clients that never stop calling have seen; `answered`: of each of them."""

    answered: list[int]
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def calling(address: str, clients: int = 1) -> AsyncIterator[Calls]:
    """So many clients, each over a connection of its own."""
    calls = Calls([0] * clients)

    async def call(client: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            while True:
                try:
                    await stub.ModelInfer(request(MODEL), timeout=10)
                    calls.answered[client] += 1
                except grpc.aio.AioRpcError as error:
                    calls.failures.append(f"{error.code()} {error.details()}")
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(call(client)) for client in range(clients)]
    try:
        yield calls
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_answered(calls: Calls, more: int) -> None:
    """Wait until each client has so many more answers: one that is still connecting has none."""
    wanted = [answered + more for answered in calls.answered]

    async def answered() -> list[int]:
        return calls.answered

    await eventually(answered, lambda counts: all(map(operator.ge, counts, wanted)))


async def test_every_model_is_answered_by_its_own_version(server: ModelServer, tmp_path: Path) -> None:
    """Envoy's script finds each model in the shard that the control plane put it into."""
    versions = {f"model-{number}.v_{number}": number for number in range(1, 200)}
    async with front(
        tmp_path, wiring([server]), {name: {number: 100} for name, number in versions.items()}
    ) as made:
        async with made.channel() as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            answers = [await stub.ModelInfer(request(name), timeout=10) for name in versions]
        assert {answer.model_name: int(answer.model_version) for answer in answers} == versions


async def test_a_caller_cannot_choose_the_routes(server: ModelServer, tmp_path: Path) -> None:
    async with (
        front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made,
        httpx.AsyncClient(base_url=f"http://{made.address}") as client,
        made.channel() as opened,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        for shard in ("models-1", "server", "nonsense", "models-1;other"):
            headers = {"x-headrace-shard": shard}
            answer = await stub.ModelInfer(request(MODEL), metadata=tuple(headers.items()), timeout=60)
            assert answer.model_version == "3"
            assert (await client.get("/v2/health/ready", headers=headers)).status_code == 200
            refused = await client.post(f"/v2/repository/models/{MODEL}/unload", headers=headers)
            assert refused.status_code == 403


async def test_envoy_may_come_before_its_control_plane(server: ModelServer, tmp_path: Path) -> None:
    wired, xds_port = wiring([server]), free_port()
    envoy = Envoy(tmp_path / "envoy", tmp_path, admin_port=free_port(), xds_port=xds_port)
    starting = asyncio.create_task(envoy.start())
    try:
        await eventually(lambda: _running(envoy), bool)
        control_plane = ControlPlane(wired)
        control_plane.update(weights(3))
        async with serve_xds(f"127.0.0.1:{xds_port}", control_plane):
            await starting
            assert await version_of(wired.listen) == "3"
    finally:
        await asyncio.gather(starting, return_exceptions=True)
        await envoy.stop()


async def _running(envoy: Envoy) -> bool:
    return envoy.running


async def test_no_call_fails_while_the_control_plane_restarts(server: ModelServer, tmp_path: Path) -> None:
    wired, xds_port = wiring([server]), free_port()
    envoy = Envoy(tmp_path / "envoy", tmp_path, admin_port=free_port(), xds_port=xds_port)
    first, second = ControlPlane(wired), ControlPlane(wired)
    try:
        async with AsyncExitStack() as running:
            first.update(weights(3))
            async with serve_xds(f"127.0.0.1:{xds_port}", first):
                await envoy.start()
                # From before it goes until it is back.
                calls = await running.enter_async_context(calling(wired.listen))
                await until_answered(calls, 10)
            await eventually(lambda: envoy.count("control_plane.connected_state"), operator.not_)
            await until_answered(calls, 50)
            # It comes back, and has something new to say.
            second.update(weights(4))
            await running.enter_async_context(serve_xds(f"127.0.0.1:{xds_port}", second))
            await eventually(lambda: version_of(wired.listen), lambda version: version == "4")
            await until_answered(calls, 50)
            assert calls.failures == []
    finally:
        await envoy.stop()


async def test_a_restarted_envoy_has_all_at_once(server: ModelServer, tmp_path: Path) -> None:
    async with front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made:
        made.envoy.kill()
        await made.envoy.wait()
        made.control_plane.update(weights(4))
        await made.envoy.start()
        assert await version_of(made.address) == "4"


async def test_several_envoys_have_the_same_routes(server: ModelServer, tmp_path: Path) -> None:
    """They share a port: the kernel spreads connections over them."""
    async with front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made:
        other = Envoy(tmp_path / "other", tmp_path / "logs", admin_port=free_port(), xds_port=made.xds_port)
        try:
            await other.start()
            made.control_plane.update(weights(4))
            await made.until_routed(MODEL, {4: 100})
            for address in [made.address] * 20:
                assert await version_of(address) == "4"
            other.kill()
            await other.wait()
            # The one that is gone holds up nobody.
            made.control_plane.update(weights(5))
            await made.until_routed(MODEL, {5: 100})
            assert await version_of(made.address) == "5"
        finally:
            await other.stop()


async def test_no_call_fails_while_envoys_restart_one_after_the_other(
    server: ModelServer, tmp_path: Path
) -> None:
    async with front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made:
        other = Envoy(tmp_path / "other", tmp_path / "logs", admin_port=free_port(), xds_port=made.xds_port)
        try:
            await other.start()
            async with calling(made.address, clients=8) as calls:
                await until_answered(calls, 100)
                for envoy in (made.envoy, other):
                    await envoy.stop()
                    await until_answered(calls, 100)
                    await envoy.start()
                    await until_answered(calls, 100)
                assert calls.failures == []
        finally:
            await other.stop()


async def test_a_stopping_envoy_answers_what_is_in_flight(server: ModelServer, tmp_path: Path) -> None:
    async with (
        front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made,
        grpc.aio.insecure_channel(made.address) as opened,
    ):
        server.held = asyncio.Event()
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer(request(MODEL), timeout=60)
        await eventually(lambda: _asked(server), bool)
        stopping = asyncio.create_task(made.envoy.stop())
        await eventually(lambda: _listeners_stopped(made.envoy), bool)
        server.held.set()
        assert (await call).model_version == "3"
        await stopping


async def test_a_draining_envoy_closes_its_sockets_before_it_tells_its_clients(
    server: ModelServer, tmp_path: Path
) -> None:
    """Whoever is told to connect anew must not come to a socket that is about to be closed."""
    async with (
        front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made,
        calling(made.address, clients=2) as calls,
    ):
        await until_answered(calls, 10)
        await http_post(made.envoy.admin_port, "/drain_listeners")
        await eventually(lambda: _listeners_stopped(made.envoy), bool)
        await until_answered(calls, 100)
        assert calls.failures == []


async def _asked(server: ModelServer) -> int:
    return len(server.asked)


async def _listeners_stopped(envoy: Envoy) -> int:
    return await envoy.count("listener_manager.listener_stopped")


async def test_a_refused_configuration_is_told_and_the_last_one_serves(
    server: ModelServer, tmp_path: Path
) -> None:
    wired, xds_port = wiring([server]), free_port()
    envoy = Envoy(tmp_path / "envoy", tmp_path, admin_port=free_port(), xds_port=xds_port)
    # Nobody's address, by RFC 5737: Envoy cannot listen there.
    right, wrong = ControlPlane(wired), ControlPlane(replace(wired, listen="192.0.2.1:8080"))
    try:
        right.update(weights(3))
        async with serve_xds(f"127.0.0.1:{xds_port}", right):
            await envoy.start()
            assert await version_of(wired.listen) == "3"
        wrong.update(weights(3))
        async with serve_xds(f"127.0.0.1:{xds_port}", wrong):

            async def problem() -> str:
                return wrong.problem(MODEL, wrong.routes[MODEL])

            found = await eventually(problem, lambda found: "refused" in found)
            assert found.startswith(f"Envoy embedded-{envoy.admin_port} refused its configuration: ")
            assert "192.0.2.1" in found
            assert await version_of(wired.listen) == "3"
    finally:
        await envoy.stop()


async def test_refused_routes_are_told_of_their_deployments_and_harm_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = "n"
    assert shard_of(neighbour) != shard_of(MODEL)

    def spoiled(shard: int, routes: Mapping[str, Route], servers: int) -> AnyMessage:
        resource = shard_resource(shard, routes, servers)
        if MODEL in routes and 4 in routes[MODEL].weights:
            configuration = route_pb2.RouteConfiguration()
            resource.Unpack(configuration)
            # Two hosts for everything: no Envoy takes that.
            configuration.virtual_hosts.add(name="another", domains=["*"])
            resource.Pack(configuration)
        return resource

    monkeypatch.setattr(xds_server, "shard_resource", spoiled)
    async with model_server() as server:
        wired = wiring([server])
        async with front(tmp_path, wired, {MODEL: {3: 100}, neighbour: {3: 100}}) as made:
            plane = made.control_plane
            assert await version_of(wired.listen) == "3"
            plane.update({name: Route({4: 100}, SIGNATURE) for name in (MODEL, neighbour)})

            async def problem() -> str:
                return plane.problem(MODEL, plane.routes[MODEL])

            found = await eventually(problem, lambda found: "refused" in found)
            assert "Only a single wildcard domain is permitted" in found
            await made.until_routed(neighbour, {4: 100})
            assert await version_of(wired.listen) == "3"
            assert await version_of(wired.listen, neighbour) == "4"
            # The next one that is right is taken.
            plane.update({name: Route({5: 100}, SIGNATURE) for name in (MODEL, neighbour)})
            await made.until_routed(MODEL, {5: 100})
            assert await version_of(wired.listen) == "5"
