"""A request goes to a server that has its model, and where none has it, it waits until one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.support.front import SIGNATURE, Front, ModelServer, front, request, wiring
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import stamp_pb2, stamp_pb2_grpc
from headrace.client.inference_protocol import MODEL_HEADER
from headrace.inference.domain.scaling import Scale
from headrace.inference.use_cases.ports import Route

MODEL = "m"
CALLS = 24
CHANNELS, CALLS_OF_EACH = 12, 100
# Far more than anything takes.
SECONDS = 120


class Waking(stamp_pb2_grpc.StampServiceServicer):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.group: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def Wake(self, request: stamp_pb2.WakeRequest, context: Any) -> stamp_pb2.WakeResponse:
        self.asked.append(request.deployment)
        try:
            return stamp_pb2.WakeResponse(group=await asyncio.shield(self.group))
        except LookupError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise

    async def ListModels(
        self, request: stamp_pb2.ListModelsRequest, context: object
    ) -> stamp_pb2.ListModelsResponse:
        return stamp_pb2.ListModelsResponse(json="[]")


class Plane:
    """Three servers, and an Envoy that knows which of them have the model."""

    def __init__(self, front: Front, servers: Sequence[ModelServer], waking: Waking) -> None:
        self.front = front
        self.servers = servers
        self.waking = waking

    async def place(self, scale: Scale) -> None:
        self.front.control_plane.update({MODEL: Route({3: 100}, SIGNATURE, scale=scale)})
        await self.front.until_routed(MODEL, {3: 100})

    async def counts(self) -> list[int]:
        """How many of so many calls each server gets."""
        before = [len(server.asked) for server in self.servers]
        async with self.front.channel() as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            await asyncio.gather(*(stub.ModelInfer(request(MODEL), timeout=30) for _ in range(CALLS)))
        return [len(server.asked) - count for server, count in zip(self.servers, before, strict=True)]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with AsyncExitStack() as stack:
        servers = [ModelServer() for _ in range(3)]
        for server in servers:
            stack.push_async_callback(server.stop)
            await server.start()
        waking = Waking()
        made = await stack.enter_async_context(
            front(tmp_path, wiring(servers), {MODEL: {3: 100}}, stamp=waking)
        )
        yield Plane(made, servers, waking)


async def test_requests_go_where_the_model_is_and_follow_it(plane: Plane) -> None:
    # Envoy may have checked no more than one of them yet.
    await eventually(plane.counts, all)
    await plane.place(Scale(1, first=1))
    assert await plane.counts() == [0, CALLS, 0]
    await plane.place(Scale(2, first=2))
    first, second, third = await plane.counts()
    assert second == 0
    assert min(first, third) > 0
    await plane.place(Scale(3))
    assert all(await plane.counts())


async def test_questions_about_a_model_go_where_it_is_and_rest_does_too(plane: Plane) -> None:
    await plane.place(Scale(1, first=2))
    async with plane.front.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        for _ in range(6):
            assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name=MODEL), timeout=30)).ready
        # Of what nobody deployed any server may say so.
        await stub.ModelReady(service_pb2.ModelReadyRequest(name="other"), timeout=30)
    assert [server.questions.count(MODEL) for server in plane.servers] == [0, 0, 6]
    assert sum(server.questions.count("other") for server in plane.servers) == 1
    async with httpx.AsyncClient(base_url=f"http://{plane.front.address}") as client:
        answers = [await client.get(f"/v2/models/{MODEL}/ready") for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    assert [server.rest for server in plane.servers] == [0, 0, 6]


async def test_the_index_lists_what_may_be_asked_whatever_server_has_it(tmp_path: Path) -> None:
    servers = [ModelServer() for _ in range(2)]
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.stop)
            await server.start()
        made = await stack.enter_async_context(front(tmp_path, wiring(servers), {}))
        made.control_plane.update(
            {
                "one": Route({3: 90, 10: 10}, SIGNATURE, scale=Scale(1, first=1)),
                "cold": Route({1: 100}, SIGNATURE, scale=Scale(0)),
            }
        )
        cold = ("cold", "1", "UNAVAILABLE", "loaded when it is asked")
        one = [("one", "3", "READY", ""), ("one", "10", "READY", "")]
        opened = await stack.enter_async_context(made.channel())
        rest = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{made.address}"))
        for ready, wanted in ((False, [cold, *one]), (True, one)):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            listed = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=ready), timeout=30)
            assert [(m.name, m.version, m.state, m.reason) for m in listed.models] == wanted
            answer = await rest.post("/v2/repository/index", json={"ready": ready})
            assert answer.headers["content-type"] == "application/json"
            found = [(m["name"], m["version"], m["state"], m.get("reason", "")) for m in answer.json()]
            assert found == wanted
        # Of many models the list is long.
        made.control_plane.update(
            {f"model-{number:04}": Route({1: 100}, SIGNATURE) for number in range(1000)}
        )
        assert len((await rest.post("/v2/repository/index")).json()) == 1000


async def test_a_request_that_finds_its_model_nowhere_waits_until_it_is_somewhere(plane: Plane) -> None:
    await plane.place(Scale(0))
    async with plane.front.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        calls = [
            asyncio.ensure_future(stub.ModelInfer(request(MODEL, id=str(number)), timeout=60))
            for number in range(3)
        ]
        await eventually(lambda: _length(plane.waking.asked), lambda count: count == 3)
        assert not any(server.asked for server in plane.servers)
        plane.waking.group.set_result("2+1")
        answers = await asyncio.gather(*calls)
    assert [(answer.id, answer.model_version) for answer in answers] == [("0", "3"), ("1", "3"), ("2", "3")]
    assert [len(server.asked) for server in plane.servers] == [0, 0, 3]
    assert set(plane.waking.asked) == {MODEL}


@pytest.mark.parametrize("version", ["", "3"])
async def test_a_request_whose_model_a_header_names_is_stamped_when_it_is_loaded(
    plane: Plane, version: str
) -> None:
    await plane.place(Scale(0))
    async with plane.front.channel() as opened:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer(
            request(MODEL, id="mine", model_version=version),
            timeout=SECONDS,
            metadata=[(MODEL_HEADER, MODEL)],
        )
        await eventually(lambda: _length(plane.waking.asked), bool)
        plane.waking.group.set_result("2+1")
        answer = await call
    assert (answer.id, answer.model_version) == ("mine", "3")


async def test_to_ask_whether_a_model_is_ready_does_not_load_it(plane: Plane) -> None:
    await plane.place(Scale(0))
    async with plane.front.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        for version in ("", "3"):
            asked = service_pb2.ModelReadyRequest(name=MODEL, version=version)
            assert (await stub.ModelReady(asked, timeout=30)).ready
    async with httpx.AsyncClient(base_url=f"http://{plane.front.address}") as client:
        for path in (f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}/versions/3/ready"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"name": MODEL, "ready": True})
    assert plane.waking.asked == []


async def test_where_it_cannot_be_loaded_the_caller_hears_why(plane: Plane) -> None:
    await plane.place(Scale(0))
    plane.waking.group.set_exception(LookupError("no server has room"))
    async with plane.front.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ModelInfer(request(MODEL), timeout=60)
    assert (raised.value.code(), raised.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "no server has room",
    )
    async with httpx.AsyncClient(base_url=f"http://{plane.front.address}") as client:
        answer = await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": []})
    assert (answer.status_code, answer.json()) == (503, {"error": "no server has room"})


async def test_however_many_streams_are_open_a_cold_model_is_loaded_and_the_models_are_listed(
    plane: Plane,
) -> None:
    await plane.place(Scale(0))
    plane.waking.group.set_result("2+1")
    async with many_channels(plane.front) as stubs:
        streams = [stub.ModelStreamInfer(timeout=SECONDS) for stub in stubs for _ in range(CALLS_OF_EACH)]
        await asyncio.gather(*(stream.initial_metadata() for stream in streams))
        async with httpx.AsyncClient(base_url=f"http://{plane.front.address}") as client:
            assert (await client.post("/v2/repository/index")).status_code == 200
        listed = await stubs[0].RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=SECONDS)
        assert [model.name for model in listed.models] == [MODEL]
        assert (await stubs[0].ModelInfer(request(MODEL), timeout=SECONDS)).model_version == "3"
        # None of them was given up for it.
        await plane.place(Scale(3))
        await streams[0].write(request(MODEL))
        streamed = await streams[0].read()
        assert (streamed.error_message, streamed.infer_response.model_version) == ("", "3")
        for stream in streams:
            stream.cancel()


async def test_however_many_wait_for_a_cold_model_all_are_answered(plane: Plane) -> None:
    await plane.place(Scale(0))
    async with many_channels(plane.front) as stubs:
        calls = [
            asyncio.ensure_future(stub.ModelInfer(request(MODEL), timeout=SECONDS))
            for stub in stubs
            for _ in range(CALLS_OF_EACH)
        ]

        async def waiting() -> tuple[int, int]:
            # One of Envoy's threads may hear later that it is cold: what it was asked before is answered.
            return len(plane.waking.asked), sum(call.done() for call in calls)

        waits, _ = await eventually(waiting, lambda counts: sum(counts) == len(calls))
        assert waits > 1024
        plane.waking.group.set_result("2+1")
        answers = await asyncio.gather(*calls)
    assert {answer.model_version for answer in answers} == {"3"}


@asynccontextmanager
async def many_channels(made: Front) -> AsyncIterator[list[service_pb2_grpc.GRPCInferenceServiceStub]]:
    """Connections that together have more calls than the 1,024 that Envoy asks of a server by default."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = [
            await stack.enter_async_context(grpc.aio.insecure_channel(made.address, options=options))
            for _ in range(CHANNELS)
        ]
        yield [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in opened]


async def _length(found: Sequence[object]) -> int:
    return len(found)
