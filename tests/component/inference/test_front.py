"""What Envoy does with requests, whatever the model: which there are, limits, and servers that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path

import grpc
import httpx
import pytest
from tests.support.front import Front, ModelServer, front, request, wiring
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.xds import clusters
from headrace.rpc.load import load

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MODEL = "m"
# Far more than any call takes.
SECONDS = 60


class Fronts:
    """Makes fronts that end with the test."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack

    async def __call__(self, count: int = 1, **limits: int) -> tuple[Front, Sequence[ModelServer]]:
        """An Envoy in front of so many servers, which all serve MODEL's version 3."""
        servers = [ModelServer() for _ in range(count)]
        for server in servers:
            self._stack.push_async_callback(server.stop)
            await server.start()
        made = await self._stack.enter_async_context(
            front(self._folder, wiring(servers, **limits), {MODEL: {3: 100}})
        )
        return made, servers


@pytest.fixture
async def make_front(tmp_path: Path) -> AsyncIterator[Fronts]:
    async with AsyncExitStack() as stack:
        yield Fronts(tmp_path, stack)


async def infer(opened: grpc.aio.Channel, **fields: object) -> service_pb2.ModelInferResponse:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
    return await stub.ModelInfer(request(MODEL, **fields), timeout=SECONDS)


def rest_client(made: Front) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=f"http://{made.address}", timeout=SECONDS, limits=limits)


async def post(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": []})


async def test_the_models_are_listed_and_none_can_be_changed(make_front: Fronts) -> None:
    made, _ = await make_front()
    async with made.channel() as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)
        for method, message in (
            ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=MODEL)),
            ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=MODEL)),
            ("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest()),
            ("LogSettings", service_pb2.LogSettingsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await getattr(stub, method)(message, timeout=10)
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    async with httpx.AsyncClient(base_url=f"http://{made.address}") as client:
        assert (await client.post("/v2/repository/index")).status_code == 200
        for path in (f"/v2/repository/models/{MODEL}/load", f"/v2/repository/models/{MODEL}/unload"):
            refused = await client.post(path, json={})
            assert (refused.status_code, refused.json()) == (403, {"error": "for operators only"})


async def test_a_deadline_and_giving_up_reach_the_server(make_front: Fronts) -> None:
    made, [server] = await make_front()
    async with made.channel() as opened:
        await infer(opened)
        # gRPC sends what is left in three digits, rounded up.
        assert 0 < (server.seconds_left[0] or 0) <= SECONDS * 1.01
        server.held = asyncio.Event()
        call = asyncio.create_task(infer(opened))
        await eventually(lambda: _count(server), lambda count: count == 2)
        call.cancel()
        await asyncio.wait_for(server.cancelled.wait(), 60)


async def test_calls_go_past_a_server_that_is_gone_and_none_fails(make_front: Fronts) -> None:
    made, [gone, left] = await make_front(2)
    async with made.channel() as opened:
        while not gone.asked:
            await infer(opened)
        gone.held = asyncio.Event()
        # With calls in flight at the server that goes away.
        calls = [asyncio.create_task(infer(opened)) for _ in range(20)]
        await eventually(lambda: _count(gone), lambda count: count > 1)
        await gone.vanish()
        calls += [asyncio.create_task(infer(opened)) for _ in range(20)]
        answers = await asyncio.gather(*calls)
    assert {answer.model_version for answer in answers} == {"3"}
    assert left.asked


async def test_a_server_that_says_it_is_not_ready_is_not_asked_until_it_is(make_front: Fronts) -> None:
    made, [sick, well] = await make_front(2)
    sick.ready = False
    await eventually(lambda: made.count("health_check.failure"), lambda count: count > 2)
    assert await made.count("membership_healthy") == 1
    async with made.channel() as opened:
        for _ in range(20):
            await infer(opened)
        assert (len(sick.asked), len(well.asked)) == (0, 20)
        sick.ready = True
        await eventually(lambda: made.count("membership_healthy"), lambda count: count == 2)
        while not sick.asked:
            await infer(opened)


async def test_a_server_that_takes_no_connections_is_put_out_whatever_the_checks_say(
    make_front: Fronts,
) -> None:
    made, [gone, _] = await make_front(2)
    await gone.vanish(rest=False)
    async with made.channel() as opened:

        async def put_out() -> int:
            await infer(opened)
            return await made.count("outlier_detection.ejections_active")

        await eventually(put_out, lambda count: count == 1)


async def test_second_attempts_take_no_more_than_their_share(
    make_front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MIN_RETRIES", 1)
    monkeypatch.setattr(clusters, "RETRY_BUDGET_PERCENT", 1.0)
    made, [without, has] = await make_front(2)
    without.refusal = grpc.StatusCode.UNAVAILABLE
    has.held = asyncio.Event()
    async with made.channel() as opened:
        calls = [asyncio.create_task(infer(opened)) for _ in range(50)]
        await eventually(lambda: made.count("upstream_rq_retry_overflow"), bool)
        has.held.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert len(has.asked) == 50 - len(refused)


async def test_second_attempts_of_rest_calls_take_no_more_than_their_share(
    make_front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MIN_RETRIES", 1)
    monkeypatch.setattr(clusters, "RETRY_BUDGET_PERCENT", 1.0)
    made, [without, has] = await make_front(2)
    without.rest_refusal = HTTPStatus.SERVICE_UNAVAILABLE
    has.held = asyncio.Event()
    async with rest_client(made) as client:
        calls = [asyncio.create_task(post(client)) for _ in range(50)]
        await eventually(lambda: made.count("upstream_rq_retry_overflow", clusters.TRITON_HTTP), bool)
        has.held.set()
        answers = await asyncio.gather(*calls)
    refused = [answer for answer in answers if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE]
    assert refused
    assert {answer.status_code for answer in answers if answer not in refused} == {HTTPStatus.OK}
    assert has.posted == 50 - len(refused)


async def test_more_than_a_cluster_takes_at_once_is_unavailable(
    make_front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MAX_REQUESTS", 5)
    made, [server] = await make_front()
    server.held = asyncio.Event()
    async with made.channel() as opened:
        calls = [asyncio.create_task(infer(opened)) for _ in range(20)]
        done, held = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await eventually(lambda: _count(server), lambda count: count >= 5)
        server.held.set()
        outcomes = await asyncio.gather(*done, *held, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert len(server.asked) == 20 - len(refused)


@pytest.mark.parametrize(
    "refusal", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED]
)
async def test_a_call_that_a_server_did_not_begin_is_answered_by_another(
    make_front: Fronts, refusal: grpc.StatusCode
) -> None:
    """A version that is not ready yet, a model that the server has not heard of, a server that stops."""
    made, [without, has] = await make_front(2)
    without.refusal = refusal
    async with made.channel() as opened:
        for _ in range(20):
            await infer(opened)
    assert without.asked
    assert len(has.asked) == 20


@pytest.mark.parametrize("refusal", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND])
async def test_a_rest_call_that_a_server_did_not_begin_is_answered_by_another(
    make_front: Fronts, refusal: HTTPStatus
) -> None:
    """A version that is not ready yet, a model that the server has not heard of."""
    made, [without, has] = await make_front(2)
    without.rest_refusal = refusal
    async with rest_client(made) as client:
        answers = [await post(client) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {HTTPStatus.OK}
    assert without.posted
    assert has.posted == 20


async def test_rest_calls_go_past_a_server_that_is_gone_and_none_fails(make_front: Fronts) -> None:
    made, [gone, left] = await make_front(2)
    async with rest_client(made) as client:
        while not gone.posted:
            await post(client)
        gone.held = asyncio.Event()
        before = gone.posted
        # With calls in flight at the server that goes away.
        calls = [asyncio.create_task(post(client)) for _ in range(20)]
        await eventually(lambda: _posted(gone), lambda count: count > before)
        await gone.vanish()
        calls += [asyncio.create_task(post(client)) for _ in range(20)]
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {HTTPStatus.OK}
    assert left.posted


async def test_what_a_model_answers_by_rest_is_not_asked_again(make_front: Fronts) -> None:
    made, servers = await make_front(2)
    for server in servers:
        server.rest_refusal = HTTPStatus.INTERNAL_SERVER_ERROR
    async with rest_client(made) as client:
        answers = [await post(client) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {HTTPStatus.INTERNAL_SERVER_ERROR}
    assert sum(server.posted for server in servers) == 20
    assert all(server.posted for server in servers)


async def test_all_calls_may_wait_for_the_one_server_that_has_the_model(make_front: Fronts) -> None:
    made, [without, has] = await make_front(2)
    without.refusal = grpc.StatusCode.NOT_FOUND
    has.held = asyncio.Event()
    async with made.channel() as opened:
        calls = [asyncio.create_task(infer(opened)) for _ in range(300)]
        await eventually(lambda: _count(has), lambda count: count == len(calls))
        has.held.set()
        await asyncio.gather(*calls)
    assert without.asked


async def test_what_a_model_answers_is_not_asked_again(make_front: Fronts) -> None:
    made, servers = await make_front(2)
    for server in servers:
        server.refusal = grpc.StatusCode.INTERNAL
    async with made.channel() as opened:
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await infer(opened)
            assert raised.value.code() is grpc.StatusCode.INTERNAL
    # A failing model takes no server from the others, either.
    assert sum(len(server.asked) for server in servers) == 20
    assert all(server.asked for server in servers)


async def test_the_server_with_fewer_requests_gets_the_next(make_front: Fronts) -> None:
    made, [busy, idle] = await make_front(2)
    async with made.channel() as opened:
        busy.held = asyncio.Event()
        held = [asyncio.create_task(infer(opened))]
        while not busy.asked:
            await eventually(lambda: _sum(busy, idle), lambda count: count == len(held))
            held.append(asyncio.create_task(infer(opened)))
        # Of two servers chosen at random, one twice maybe, the one with fewer requests: a quarter, not half.
        waiting: list[asyncio.Task[service_pb2.ModelInferResponse]] = []
        for _ in range(200):
            waiting.append(asyncio.create_task(infer(opened)))
            await eventually(lambda: _sum(busy, idle), lambda count: count == len(held) + len(waiting))
        assert len(busy.asked) < 80
        busy.held.set()
        await asyncio.gather(*waiting)
        await asyncio.gather(*held)


async def test_a_model_has_so_many_requests_a_second(make_front: Fronts) -> None:
    made, [server] = await make_front(model_rate=5)
    async with made.channel() as opened:
        outcomes = await asyncio.gather(*(infer(opened) for _ in range(100)), return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert {(error.code(), error.details()) for error in refused} == {
            (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "more requests a second than one client, or this model, may have; try again later",
            )
        }
        assert len(server.asked) == 100 - len(refused)
        # Other calls are not the model's.
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)
    async with httpx.AsyncClient(base_url=f"http://{made.address}") as rest:
        answers = [await rest.get(f"/v2/models/{MODEL}/ready") for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}


async def test_a_client_has_so_many_requests_a_second(make_front: Fronts) -> None:
    made, _ = await make_front(client_rate=5)

    async def statuses(source: str) -> set[int]:
        transport = httpx.AsyncHTTPTransport(local_address=source)
        async with httpx.AsyncClient(base_url=f"http://{made.address}", transport=transport) as client:
            answers = await asyncio.gather(*(client.get("/v2/health/ready") for _ in range(20)))
            for answer in answers:
                assert answer.status_code == 200 or answer.json()["error"].startswith(
                    "more requests a second"
                )
            return {answer.status_code for answer in answers}

    assert await statuses("127.0.0.2") == {200, 429}
    async with httpx.AsyncClient(
        base_url=f"http://{made.address}", transport=httpx.AsyncHTTPTransport(local_address="127.0.0.3")
    ) as other:
        assert (await other.get("/v2/health/ready")).status_code == 200


async def test_while_no_server_answers_both_protocols_say_unavailable(make_front: Fronts) -> None:
    made, [server] = await make_front()
    await server.vanish()
    async with made.channel() as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await infer(opened)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    async with httpx.AsyncClient(base_url=f"http://{made.address}") as client:
        answer = await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": []})
    assert answer.status_code == 503
    assert answer.json()["error"]


async def _count(server: ModelServer) -> int:
    return len(server.asked)


async def _posted(server: ModelServer) -> int:
    return server.posted


async def _sum(*servers: ModelServer) -> int:
    return sum(len(server.asked) for server in servers)


async def test_more_calls_than_a_connection_takes_wait_for_their_turn_in_the_load_generator(
    make_front: Fronts,
) -> None:
    made, _ = await make_front()
    message = request(MODEL).SerializeToString()
    # Envoy takes 1,024 of a connection at once, and ends one that sends more.
    outcome = await load(made.address, METHOD, message, in_flight=3000, seconds=0.1)
    assert outcome.failed == 0
    assert len(outcome.seconds) >= 3000
